# terraform test, with a provider that makes nothing.
mock_provider "docker" {}

variables {
  image = "registry.example.com/millrace:v1.2.3"
  keys  = "shipper 0000000000000000000000000000000000000000000000000000000000000000 write\n"
  passwords = {
    postgres = "0000000000000000000000000000000a"
    owner    = "0000000000000000000000000000000b"
    writer   = "0000000000000000000000000000000c"
    reader   = "0000000000000000000000000000000d"
    monitor  = "0000000000000000000000000000000e"
    rabbitmq = "0000000000000000000000000000000f"
    cookie   = "00000000000000000000000000000010"
    redis    = "00000000000000000000000000000011"
    grafana  = "00000000000000000000000000000012"
  }
}

run "defaults" {
  assert {
    condition     = toset(keys(docker_service.this)) == toset(["balancer", "api", "worker", "query", "migrate", "roles", "postgres", "rabbitmq", "redis", "prometheus", "postgres-exporter", "grafana"])
    error_message = "services: ${join(", ", keys(docker_service.this))}"
  }
  assert {
    condition     = docker_service.this["api"].mode[0].replicated[0].replicas == 2
    error_message = "two APIs by default"
  }
  assert {
    condition     = alltrue([for name, s in docker_service.this : contains(["migrate", "roles"], name) == (s.update_config[0].failure_action == "continue")])
    error_message = "a job that ends is not rolled back"
  }
  assert {
    condition     = alltrue([for s in docker_service.this : can(regex("^[1-9][0-9]*:", s.task_spec[0].container_spec[0].user)) && s.task_spec[0].container_spec[0].cap_drop == tolist(["ALL"])])
    error_message = "no service is root, and none has a right of root's"
  }
  assert {
    condition     = toset([for name, s in docker_service.this : name if !s.task_spec[0].container_spec[0].read_only]) == toset(["rabbitmq", "grafana"])
    error_message = "the others can't write beside their volumes"
  }
  assert {
    condition     = alltrue([for s in docker_service.this : s.task_spec[0].resources[0].limits[0].memory_bytes >= 100000000])
    error_message = "every service has a memory limit"
  }
  assert {
    condition     = alltrue([for name, s in docker_service.this : (s.task_spec[0].container_spec[0].healthcheck[0].test[0] == "NONE") == contains(["migrate", "roles"], name)])
    error_message = "every service that lasts has a health check, and no other has the image's"
  }
  assert {
    condition     = alltrue([for name, s in docker_service.this : !strcontains(jsonencode(s.task_spec[0].container_spec[0].env), "00000000")])
    error_message = "no password is in an environment"
  }
  assert {
    condition     = alltrue([for s in docker_secret.this : !strcontains(s.name, "00000000")])
    error_message = "no password is in a secret's name"
  }
  assert {
    condition = alltrue(flatten([for s in docker_secret.this : [
      for digest in flatten([for content in values(local.secrets) : [sha256(content), sha1(content), md5(content)]]) : !strcontains(s.name, substr(nonsensitive(digest), 0, 8))
    ]]))
    error_message = "no hash of a secret, from which it could be guessed, is in a secret's name"
  }
  assert {
    condition     = docker_service.this["api"].task_spec[0].container_spec[0].env["KEYS_FILE"] == "/etc/millrace/keys" && docker_service.this["api"].task_spec[0].container_spec[0].env["ALLOW_ANONYMOUS"] == "false"
    error_message = "the API asks for keys"
  }
  assert {
    condition     = !contains(keys(docker_service.this["query"].task_spec[0].container_spec[0].env), "SEARCHES_FILE") && !contains(keys(docker_secret.this), "searches")
    error_message = "no searches by default"
  }
  assert {
    condition     = alltrue([for content in values(local.secrets) : !nonsensitive(strcontains(content, "ARCHIVE_URL"))])
    error_message = "no archive by default"
  }
  assert {
    condition     = !contains(keys(docker_service.this["worker"].task_spec[0].container_spec[0].env), "AUTO_MIGRATE")
    error_message = "a worker does not give up because migrate is not through"
  }
  assert {
    condition     = length(docker_service.this["api"].endpoint_spec[0].ports) == 0 && toset([for p in docker_service.this["balancer"].endpoint_spec[0].ports : p.published_port]) == toset([8080, 8081])
    error_message = "the balancer alone publishes the API"
  }
  assert {
    condition     = contains(docker_service.this["postgres"].task_spec[0].container_spec[0].args, "-cmax_wal_size=4GB")
    error_message = "PostgreSQL is tuned as in docker-compose.yml"
  }
  assert {
    condition     = alltrue([for s in docker_service.this : !strcontains(jsonencode(s.task_spec[0].container_spec[0].args == null ? [] : s.task_spec[0].container_spec[0].args), "$")])
    error_message = "what is a variable to docker compose has its value"
  }
  assert {
    condition     = alltrue([for name in keys(docker_config.this) : !startswith(name, "rabbitmq-")])
    error_message = "one node waits for no others"
  }
  assert {
    condition     = output.grafana_port == 3000 && length(output.volumes) == 4
    error_message = "volumes: ${join(", ", output.volumes)}"
  }
}

run "three_brokers" {
  variables {
    brokers = 3
  }
  assert {
    condition     = alltrue([for name in ["rabbitmq", "rabbitmq-2", "rabbitmq-3"] : docker_service.this[name].task_spec[0].container_spec[0].hostname == name])
    error_message = "three nodes, each with the name that its data belongs to"
  }
  assert {
    condition     = alltrue([for name in ["rabbitmq", "rabbitmq-2", "rabbitmq-3"] : contains(tolist(docker_service.this[name].task_spec[0].networks_advanced)[0].aliases, "broker")])
    error_message = "broker is the name of all nodes"
  }
  assert {
    condition = { for name in ["rabbitmq", "rabbitmq-2", "rabbitmq-3"] : name => [for c in docker_service.this[name].task_spec[0].container_spec[0].configs : c.config_name if c.file_name == "/etc/rabbitmq/conf.d/70-peers.conf"] } == {
      "rabbitmq"   = []
      "rabbitmq-2" = [docker_config.this["rabbitmq-2.conf"].name]
      "rabbitmq-3" = [docker_config.this["rabbitmq-3.conf"].name]
    }
    error_message = "the second and the third node look for the first, which waits for nobody"
  }
  assert {
    condition     = alltrue([for name in ["rabbitmq", "rabbitmq-2", "rabbitmq-3"] : docker_service.this[name].task_spec[0].container_spec[0].healthcheck[0].test == tolist(["NONE"])])
    error_message = "a node has its name before it is healthy, so that the others find it"
  }
  assert {
    condition     = length(docker_volume.this) == 6
    error_message = "each node has a volume"
  }
}

run "unwatched" {
  variables {
    monitoring = false
  }
  assert {
    condition     = length(docker_service.this) == 9 && output.grafana_port == null && !contains(keys(docker_secret.this), "grafana")
    error_message = "services: ${join(", ", keys(docker_service.this))}"
  }
}

run "settings_and_replicas" {
  variables {
    settings  = { QUEUE_SHARDS = "4", LOG_FORMAT = "text" }
    replicas  = { worker = 3 }
    placement = { postgres = ["node.hostname==db1"] }
    memory    = { postgres = 8589934592 }
  }
  assert {
    condition     = alltrue([for name in ["api", "worker", "query"] : docker_service.this[name].task_spec[0].container_spec[0].env["QUEUE_SHARDS"] == "4" && docker_service.this[name].task_spec[0].container_spec[0].env["LOG_FORMAT"] == "text"])
    error_message = "all services get the settings"
  }
  assert {
    condition     = docker_service.this["worker"].mode[0].replicated[0].replicas == 3
    error_message = "three workers"
  }
  assert {
    condition     = docker_service.this["postgres"].task_spec[0].placement[0].constraints == toset(["node.hostname==db1"]) && docker_service.this["postgres"].task_spec[0].resources[0].limits[0].memory_bytes == 8589934592
    error_message = "PostgreSQL is where it was put"
  }
}

run "anonymous" {
  variables {
    keys            = ""
    allow_anonymous = true
  }
  assert {
    condition     = !contains(keys(docker_service.this["api"].task_spec[0].container_spec[0].env), "KEYS_FILE") && !contains(keys(docker_secret.this), "keys")
    error_message = "no keys file"
  }
}

run "searches" {
  variables {
    searches = "searches:\n  - {name: errors, q: level:error}\n"
  }
  assert {
    condition     = docker_service.this["query"].task_spec[0].container_spec[0].env["SEARCHES_FILE"] == "/etc/millrace/searches.yaml" && contains(keys(docker_secret.this), "searches")
    error_message = "the query service has the file of searches"
  }
  assert {
    condition     = !contains(keys(docker_service.this["api"].task_spec[0].container_spec[0].env), "SEARCHES_FILE")
    error_message = "no other service has it"
  }
}

run "archive" {
  variables {
    archive = { url = "s3://logs/millrace?region=eu-central-1", key_id = "AKIAIOSFODNN7EXAMPLE", secret = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY" }
  }
  assert {
    condition = alltrue([for name in ["worker", "query"] : nonsensitive(endswith(local.secrets[name],
    "\nARCHIVE_URL='s3://logs/millrace?region=eu-central-1'\nAWS_ACCESS_KEY_ID='AKIAIOSFODNN7EXAMPLE'\nAWS_SECRET_ACCESS_KEY='wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY'\n"))])
    error_message = "worker and query service have the bucket and its key"
  }
  assert {
    condition     = alltrue([for name, content in local.secrets : contains(["worker", "query"], name) || !nonsensitive(strcontains(content, "AKIA"))])
    error_message = "no other service has the key"
  }
  assert {
    condition     = !strcontains(jsonencode([for s in docker_service.this : nonsensitive(s.task_spec[0].container_spec[0].env)]), "AKIA")
    error_message = "the key is in no environment"
  }
}

run "archive_in_a_folder" {
  command = plan
  variables {
    archive = { url = "file:///var/lib/millrace/archive" }
  }
  expect_failures = [var.archive]
}

run "half_a_key" {
  command = plan
  variables {
    archive = { url = "s3://logs", key_id = "AKIAIOSFODNN7EXAMPLE" }
  }
  expect_failures = [var.archive]
}

run "the_longest_name" {
  variables {
    name    = "millrace-prod"
    brokers = 3
  }
  assert {
    condition     = alltrue([for made in concat(values(docker_config.this), values(docker_secret.this)) : length(made.name) <= 64])
    error_message = "the swarm takes names of 64 characters: ${join(", ", [for made in concat(values(docker_config.this), values(docker_secret.this)) : made.name if length(made.name) > 64])}"
  }
  assert {
    condition     = alltrue([for made in values(docker_service.this) : length(made.name) <= 63])
    error_message = "the swarm takes names of services of 63 characters"
  }
}

run "refused" {
  command = plan
  variables {
    keys      = ""
    image     = "millrace:latest"
    brokers   = 2
    name      = "millrace-prod2"
    replicas  = { api = 0 }
    ports     = { api = 0 }
    settings  = { POSTGRES_URL = "postgres://elsewhere/" }
    placement = { database = ["node.role==manager"] }
    passwords = {
      postgres = "short"
      owner    = "0000000000000000000000000000000b"
      writer   = "0000000000000000000000000000000b"
      reader   = "0000000000000000000000000000000d"
      monitor  = "0000000000000000000000000000000e"
      rabbitmq = "has/a/slash/in/it"
      cookie   = "00000000000000000000000000000010"
      redis    = "00000000000000000000000000000011"
      grafana  = "00000000000000000000000000000012"
    }
  }
  expect_failures = [var.keys, var.image, var.brokers, var.name, var.replicas, var.ports, var.settings, var.placement, var.passwords]
}
