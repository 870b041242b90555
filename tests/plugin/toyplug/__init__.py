"""A plug-in package of the tests: three methods in the form that third parties would write them."""
