"""Frame features of a folder of video files, in the layout that :mod:`lit_mmpg.data.features` reads."""
