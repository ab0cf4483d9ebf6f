output "api_port" {
  description = "Where every host takes logs: POST http://HOST:PORT/log."
  value       = var.ports.api
}

output "query_port" {
  description = "Where every host has the page and the search."
  value       = var.ports.query
}

output "grafana_port" {
  description = "Where every host has Grafana; null without it."
  value       = var.monitoring && var.ports.grafana > 0 ? var.ports.grafana : null
}

output "network" {
  description = "The network of the services, for containers of your own: there PostgreSQL is postgres:5432, RabbitMQ broker:5672, and Prometheus prometheus:9090."
  value       = docker_network.this.name
}

output "services" {
  description = "Names of the swarm's services, for docker service logs and docker service scale."
  value       = { for name, s in docker_service.this : name => s.name }
}

output "volumes" {
  description = "Names of the volumes, which are what to back up."
  value       = [for v in docker_volume.this : v.name]
}
