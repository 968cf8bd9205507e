"""A model: a propagator with all one has to know to use it.

`model` has `ScoreModel`, which is what everybody uses: it has members, one for each molecule that
it knows (`member`), and each has a card (`card`) and perhaps a novelty score (`novelty`). `bundle`
is the file that a model is kept in, `names` says where the file of a name is, `listing` what stands
in it beside the weights.
"""
