"""Where row changes go: Kafka, and the customers of chat. Each sink repeats what fails until it is taken."""
