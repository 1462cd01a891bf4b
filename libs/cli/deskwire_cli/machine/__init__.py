"""What `deskwire up` runs on one machine, and the tests too: processes, ports, files, Kafka, Valkey."""
