"""Forms of generated parameters, one file each, and their injection into the layers of any module.

A form is a subclass of :class:`lit_mmpg.forms.base.Form`. It applies to every kind of layer of
:mod:`lit_mmpg.forms.layers` for one device or for several at once. Another package adds one by an entry point of the
group ``lit_mmpg.forms``.
"""
