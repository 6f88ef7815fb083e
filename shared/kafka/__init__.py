"""What the adapters of the bus and of requests share on Kafka: clients and topics."""
