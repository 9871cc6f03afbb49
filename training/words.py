"""Word lists of the text analysis: stop words to drop and suffixes to strip."""

# Function words, and the parts of contractions that remain when the apostrophe is removed.
STOP_WORDS = tuple(
    """a about also an and any are as at be been being between but by can could d did do does don for
    from had has have he her his how if in into is it its ll may me might more most must my no not of
    on only or our out re s shall she should so some such t than that the their them then there these
    they this those to up us ve very was we were what when where which who whom whose why will with
    within would you your""".split()
)

# Suffixes to strip, so that "compute", "computing" and "computation" have the same stem. The regular
# expression that uses them takes the shortest stem of at least three letters.
SUFFIXES = tuple(
    """able ably al ally als ate ated ates ating ation ations ator ators e ed edly es ic ical
    ically ics ied ies ily ing ings ion ions ities ity ive ively ives ly ment ments ness s y""".split()
)
