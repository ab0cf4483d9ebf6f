# Millrace on Docker hosts: a swarm of one or more (docker swarm init). Everything is a service of the swarm, so that
# passwords are secrets, replicas are a number, and an update goes one container after the other.
#
# docker-compose.yml and deploy/ say which images, limits, health checks and configuration: this folder uses theirs, so
# take the module with the repository around it: source = "git::https://…/millrace.git//terraform?ref=v1.2.3".

locals {
  compose = yamldecode(file("${path.module}/../docker-compose.yml")).services
  deploy  = "${path.module}/../deploy"

  memory = merge({
    for name, s in local.compose : name => tonumber(regex("^[0-9]+", s.mem_limit)) * (endswith(s.mem_limit, "g") ? 1073741824 : 1048576)
  }, var.memory)

  millrace = {
    image      = var.image
    stop_grace = local.compose.api.stop_grace_period
    order      = "start-first"
    env        = merge({ LOG_FORMAT = "json" }, var.settings)
  }
  job = merge(local.millrace, {
    job     = true
    secrets = { superuser = "/etc/millrace/.env" }
    # Without a word here it has the image's, which no job passes: one that takes a minute would be killed.
    healthcheck = { test = ["NONE"], interval = "0s", timeout = "0s", start_period = "0s" }
  })
  access = merge(
    { ALLOW_ANONYMOUS = tostring(var.allow_anonymous) },
    var.keys == "" ? {} : { KEYS_FILE = "/etc/millrace/keys" },
  )
  keys     = nonsensitive(var.keys == "") ? {} : { keys = "/etc/millrace/keys" }
  searches = nonsensitive(var.searches == "") ? {} : { searches = "/etc/millrace/searches.yaml" }

  services = merge(
    {
      balancer = {
        image   = local.compose.balancer.image
        env     = { BALANCER_CONNECTIONS = tostring(var.balancer_connections) }
        order   = "start-first"
        configs = { "haproxy.cfg" = "/usr/local/etc/haproxy/haproxy.cfg" }
        ports   = { 8080 = var.ports.api, 8081 = var.ports.query }
      }
      api = merge(local.millrace, {
        args     = ["api"]
        env      = merge({ SHUTDOWN_DELAY = "4s" }, local.millrace.env, local.access)
        secrets  = merge({ api = "/etc/millrace/.env" }, local.keys)
        replicas = var.replicas.api
      })
      # It migrates as well, as the tables' owner: nothing here waits until migrate has ended, and a worker that gives up on
      # an older schema would have its update rolled back.
      worker = merge(local.millrace, {
        args     = ["worker"]
        env      = merge({ GOMEMLIMIT = local.compose.worker.environment.GOMEMLIMIT }, local.millrace.env, { ALLOW_ANONYMOUS = "true" })
        secrets  = { worker = "/etc/millrace/.env" }
        replicas = var.replicas.worker
      })
      query = merge(local.millrace, {
        args     = ["query"]
        env      = merge({ GOMEMLIMIT = local.compose.query.environment.GOMEMLIMIT, SHUTDOWN_DELAY = "4s" }, local.millrace.env, local.access, { for name, file in local.searches : "SEARCHES_FILE" => file })
        secrets  = merge({ query = "/etc/millrace/.env" }, local.keys, local.searches)
        replicas = var.replicas.query
      })
      # These end when they are done, and run anew with every version. roles fails and tries again until migrate is through.
      migrate = merge(local.job, { args = ["migrate", "up"] })
      roles   = merge(local.job, { args = ["migrate", "roles"] })
    },
    local.servers,
    { for name, s in local.monitoring : name => s if var.monitoring },
  )

  amqp = "amqp://millrace:${var.passwords.rabbitmq}@broker:5672/"

  # By it the services set the policy that shields the queues, and see those that harm them.
  management = "http://millrace:${var.passwords.rabbitmq}@broker:15672"

  archive = join("", [for name, value in { ARCHIVE_URL = var.archive.url, AWS_ACCESS_KEY_ID = var.archive.key_id, AWS_SECRET_ACCESS_KEY = var.archive.secret } : value == "" ? "" : "${name}='${value}'\n"])

  database = "postgres:5432/millrace?sslmode=disable"
  secrets = {
    api       = "RABBITMQ_URL='${local.amqp}'\nRABBITMQ_MANAGEMENT_URL='${local.management}'\n"
    worker    = "RABBITMQ_URL='${local.amqp}'\nRABBITMQ_MANAGEMENT_URL='${local.management}'\nPOSTGRES_URL='postgres://millrace_writer:${var.passwords.writer}@${local.database}'\nPOSTGRES_OWNER_URL='postgres://millrace_owner:${var.passwords.owner}@${local.database}'\n${local.archive}"
    query     = "POSTGRES_URL='postgres://millrace_reader:${var.passwords.reader}@${local.database}'\nREDIS_URL='redis://:${var.passwords.redis}@redis:6379/0'\n${local.archive}"
    superuser = "POSTGRES_URL='postgres://millrace:${var.passwords.postgres}@${local.database}'\n"
    keys      = var.keys == "" ? "# none\n" : var.keys
    searches  = var.searches == "" ? "# none\n" : var.searches
    postgres  = var.passwords.postgres
    owner     = var.passwords.owner
    writer    = var.passwords.writer
    reader    = var.passwords.reader
    monitor   = var.passwords.monitor
    rabbitmq  = "default_user = millrace\ndefault_pass = ${var.passwords.rabbitmq}\n"
    cookie    = var.passwords.cookie
    redis     = "requirepass ${var.passwords.redis}\nsave \"\"\nappendonly no\nmaxmemory 256mb\nmaxmemory-policy allkeys-lru\n"
    grafana   = var.passwords.grafana
  }
  configs = merge(
    {
      "haproxy.cfg"     = file("${local.deploy}/haproxy/haproxy.cfg")
      "users.sh"        = file("${local.deploy}/postgres/users.sh")
      "enabled_plugins" = file("${local.deploy}/rabbitmq/enabled_plugins")
      "millrace.conf"   = file("${local.deploy}/rabbitmq/millrace.conf")
      "cluster.conf"    = file("${local.deploy}/rabbitmq/cluster.conf")
    },
    { for node in local.joining : "${node}.conf" => file("${local.deploy}/rabbitmq/${node}.conf") },
    { for name, content in local.monitoring_configs : name => content if var.monitoring },
  )

  used_secrets = toset(flatten([for s in values(local.services) : keys(try(s.secrets, {}))]))
  volumes      = toset(flatten([for s in values(local.services) : keys(try(s.volumes, {}))]))

  # Who a secret's file belongs to: the user that the program runs as.
  owners = merge(
    { for name in ["api", "worker", "query", "superuser", "keys", "searches"] : name => "65532" },
    { for name in ["rabbitmq", "cookie", "redis", "postgres", "owner", "writer"] : name => "999" },
    { grafana = "472", monitor = "65534" },
  )
}

resource "docker_network" "this" {
  name       = var.name
  driver     = "overlay"
  attachable = true
  options    = var.encrypt_network ? { encrypted = "true" } : {}
  lifecycle {
    # The engine adds an option of its own, which would be a difference at every apply, and a new network for it.
    ignore_changes       = [options]
    replace_triggered_by = [terraform_data.network]
  }
}

resource "terraform_data" "network" {
  input = var.encrypt_network
}

# Secrets and configs can't be changed, only replaced. A config's name ends in a hash of what it holds. A secret's ends
# in a random number, a new one for each content: names are no secrets, and from a hash passwords could be guessed.
resource "terraform_data" "secret" {
  for_each         = local.used_secrets
  triggers_replace = sha256(local.secrets[each.key])
  lifecycle {
    create_before_destroy = true
  }
}

resource "docker_secret" "this" {
  for_each = local.used_secrets
  name     = "${var.name}-${each.key}-${substr(replace(terraform_data.secret[each.key].id, "-", ""), 0, 12)}"
  data     = base64encode(local.secrets[each.key])
  lifecycle {
    create_before_destroy = true
  }
}

resource "docker_config" "this" {
  for_each = local.configs
  name     = "${var.name}-${replace(each.key, "/[^A-Za-z0-9.-]/", "-")}-${substr(sha256(each.value), 0, 12)}"
  data     = base64encode(each.value)
  lifecycle {
    create_before_destroy = true
  }
}

# Made on the host that Terraform talks to; on others the swarm makes a volume of the same name where a service first
# runs. terraform destroy removes the former, with all that is stored.
resource "docker_volume" "this" {
  for_each = local.volumes
  name     = "${var.name}-${each.key}"
}

resource "docker_service" "this" {
  for_each = local.services
  name     = "${var.name}-${each.key}"

  task_spec {
    container_spec {
      image     = each.value.image
      command   = try(each.value.command, null)
      args      = try(each.value.args, null)
      env       = try(each.value.env, {})
      hostname  = try(each.value.hostname, null)
      user      = local.compose[each.key].user
      read_only = try(local.compose[each.key].read_only, false)
      cap_drop  = local.compose[each.key].cap_drop
      # The provider waits as long for a container that it removes, and fails when that has needed all of it.
      stop_grace_period = try(each.value.stop_grace, "1m")

      dynamic "secrets" {
        for_each = try(each.value.secrets, {})
        content {
          secret_id   = docker_secret.this[secrets.key].id
          secret_name = docker_secret.this[secrets.key].name
          file_name   = secrets.value
          file_uid    = try(each.value.secret_uid, local.owners[secrets.key], "0")
          file_gid    = try(each.value.secret_uid, local.owners[secrets.key], "0")
          file_mode   = 256 # 0400
        }
      }
      dynamic "configs" {
        for_each = try(each.value.configs, {})
        content {
          config_id   = docker_config.this[configs.key].id
          config_name = docker_config.this[configs.key].name
          file_name   = configs.value
          file_mode   = endswith(configs.key, ".sh") ? 365 : 292 # 0555, 0444
        }
      }
      dynamic "mounts" {
        for_each = try(each.value.volumes, {})
        content {
          type   = "volume"
          source = docker_volume.this[mounts.key].name
          target = mounts.value
        }
      }
      dynamic "mounts" {
        for_each = try(each.value.tmpfs, {})
        content {
          type   = "tmpfs"
          target = mounts.key
          tmpfs_options {
            size_bytes = mounts.value
          }
        }
      }
      dynamic "healthcheck" {
        for_each = [merge(local.compose[each.key].healthcheck, try(each.value.healthcheck, {}))]
        content {
          test         = healthcheck.value.test
          interval     = healthcheck.value.interval
          timeout      = healthcheck.value.timeout
          start_period = healthcheck.value.start_period
          retries      = 3
        }
      }
    }
    networks_advanced {
      id      = docker_network.this.id
      aliases = toset(concat([each.key], try(each.value.aliases, [])))
    }
    resources {
      limits {
        memory_bytes = local.memory[each.key]
      }
    }
    placement {
      constraints = try(var.placement[each.key], [])
    }
    restart_policy {
      condition = try(each.value.job, false) ? "on-failure" : "any"
      delay     = "5s"
      window    = "0s" # what the engine says where there is nothing: a difference at every apply
    }
    log_driver {
      name    = "json-file"
      options = { max-size = "10m", max-file = "5" }
    }
  }

  mode {
    replicated {
      replicas = try(each.value.replicas, 1)
    }
  }
  update_config {
    parallelism = 1
    order       = try(each.value.order, "stop-first")
    # A job ends, which the swarm takes for a failure of its update: a rollback would run the old version.
    failure_action = try(each.value.job, false) ? "continue" : try(each.value.order, "") == "start-first" ? "rollback" : "pause"
    monitor        = "30s"
  }
  rollback_config {
    parallelism = 1
    order       = try(each.value.order, "stop-first")
  }
  # Names resolve to the containers themselves, as in docker compose: the balancer and Prometheus look for each of them,
  # and connections that rest for a quarter of an hour are not cut by the swarm's own balancer. What is published
  # needs that one.
  endpoint_spec {
    mode = length(try(each.value.ports, {})) > 0 ? "vip" : "dnsrr"
    dynamic "ports" {
      for_each = try(each.value.ports, {})
      content {
        target_port    = tonumber(ports.key)
        published_port = ports.value
        publish_mode   = "ingress"
      }
    }
  }
  dynamic "converge_config" {
    for_each = var.wait && !try(each.value.job, false) ? [1] : []
    content {
      delay   = "5s"
      timeout = "10m" # images are pulled, and servers recover
    }
  }
}
