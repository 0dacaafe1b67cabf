"""What travels: msgspec Structs and pure functions. Standard library and msgspec only."""
