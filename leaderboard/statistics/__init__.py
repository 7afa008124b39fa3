"""Is one method better than another, and how surely? Pairs, tests, intervals, ranks and sentences from records.

Two questions are kept apart. *Over seeds*: would it be so again if the students were trained again? *Over items*: would
it be so on other test items of the same kind, with these trained students? A sentence says which one it answers, and
none is made where the data do not allow it. No torch.
"""
