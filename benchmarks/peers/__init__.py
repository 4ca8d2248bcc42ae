"""The same steps by other libraries that stream: how exact they are, what they take, what they refuse."""
