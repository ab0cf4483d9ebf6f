locals {
  nodes   = slice(["rabbitmq", "rabbitmq-2", "rabbitmq-3"], 0, var.brokers)
  joining = setsubtract(local.nodes, ["rabbitmq"]) # the first, whenever that is there

  servers = merge(
    {
      postgres = {
        image = local.compose.postgres.image
        args  = local.compose.postgres.command
        env = {
          POSTGRES_USER          = "millrace"
          POSTGRES_DB            = "millrace"
          POSTGRES_INITDB_ARGS   = local.compose.postgres.environment.POSTGRES_INITDB_ARGS
          POSTGRES_PASSWORD_FILE = "/run/secrets/postgres_password"
        }
        secrets = {
          postgres = "/run/secrets/postgres_password"
          owner    = "/run/secrets/postgres_owner_password"
          writer   = "/run/secrets/postgres_writer_password"
          reader   = "/run/secrets/postgres_reader_password"
          monitor  = "/run/secrets/postgres_monitor_password"
        }
        secret_uid = "999"
        configs    = { "users.sh" = "/docker-entrypoint-initdb.d/users.sh" }
        volumes    = { postgres = "/var/lib/postgresql" }
        # /dev/shm as shm_size; the rest is read-only.
        tmpfs      = { "/dev/shm" = 1073741824, "/tmp" = 67108864, "/var/run/postgresql" = 1048576 }
        stop_grace = local.compose.postgres.stop_grace_period
      }
      redis = {
        image   = local.compose.redis.image
        args    = ["redis-server", "/run/secrets/redis.conf"]
        secrets = { redis = "/run/secrets/redis.conf" }
        # That it asks for the password says enough.
        healthcheck = { test = ["CMD-SHELL", "redis-cli ping | grep -q NOAUTH"] }
      }
    },
    {
      for node in local.nodes : node => {
        image    = local.compose.rabbitmq.image
        hostname = node # the node's name, which its data belongs to
        aliases  = ["broker"]
        secrets = {
          rabbitmq = "/etc/rabbitmq/conf.d/90-user.conf"
          cookie   = "/var/lib/rabbitmq/.erlang.cookie"
        }
        configs = merge(
          {
            "enabled_plugins" = "/etc/rabbitmq/enabled_plugins"
            "millrace.conf"   = "/etc/rabbitmq/conf.d/50-millrace.conf"
            "cluster.conf"    = "/etc/rabbitmq/conf.d/60-cluster.conf"
          },
          contains(local.joining, node) ? { "${node}.conf" = "/etc/rabbitmq/conf.d/70-peers.conf" } : {},
        )
        # The swarm gives a container its name only when its health check has passed, and a node of several passes it only
        # with others, which it finds by their names: they would wait for each other.
        healthcheck = { test = var.brokers == 3 ? ["NONE"] : local.compose.rabbitmq.healthcheck.test }
        volumes     = { (node) = "/var/lib/rabbitmq" }
        stop_grace  = local.compose.rabbitmq.stop_grace_period
      }
    },
  )
}
