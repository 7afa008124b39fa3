"""Text of people read and checked: YAML files, annotations, classes in syntax trees, errors in words. No torch."""
