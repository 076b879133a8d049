"""transfers/ - fetches over an emulated WAN: which part of the link do they fill, by the size of the pieces?"""
