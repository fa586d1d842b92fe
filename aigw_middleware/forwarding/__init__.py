"""From a request to a provider's answer: the address, the attempts, the wire, the stream."""
