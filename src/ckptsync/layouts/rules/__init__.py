"""What a complete checkpoint has to satisfy, one rule a module.

Takes the listing of a folder and gives a Problem for each violation, marked `transient` if the Trainer may still be writing.
Parses nothing itself: the formats do.
"""
