# Millrace on one Docker host, this one by default, after docker swarm init:
#
#     terraform init && terraform apply -var image=registry.example.com/millrace:v1.2.3 -var-file=secrets.tfvars
#
# secrets.tfvars, which belongs into no repository, has passwords = { … } and keys = "…"; openssl rand -hex 16 makes one.
terraform {
  required_providers {
    docker = {
      source  = "kreuzwerker/docker"
      version = "~> 4.6"
    }
  }
}

variable "host" {
  description = "A manager of the swarm, such as ssh://deploy@log1.example.com."
  type        = string
  default     = "unix:///var/run/docker.sock"
}

variable "image" {
  description = "Millrace's image."
  type        = string
}

variable "passwords" {
  description = "As the module has them."
  type        = map(string)
  sensitive   = true
}

variable "keys" {
  description = "Lines of millrace keys new."
  type        = string
  sensitive   = true
}

provider "docker" {
  host = var.host
}

module "millrace" {
  source = "../.."

  image     = var.image
  passwords = var.passwords
  keys      = var.keys
  replicas  = { api = 2, worker = 1, query = 1 }
  settings  = { RETENTION = "720h" }
}

output "services" {
  description = "Names of the swarm's services."
  value       = module.millrace.services
}
