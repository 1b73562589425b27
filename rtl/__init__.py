"""The RTL generator: Amaranth components made from an ArchSpec."""
