variable "name" {
  description = "Name of the installation: the prefix of all that is made on the Docker hosts."
  type        = string
  default     = "millrace"
  # A config's name has at most 64 characters; the longest adds -provisioning-datasources-millrace.yml- and 12 of a hash.
  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,12}$", var.name))
    error_message = "name: lower-case letters, digits and hyphens, at most 13, a letter first."
  }
}

variable "image" {
  description = "Image of Millrace, with its version, where all hosts can pull it."
  type        = string
  validation {
    condition     = can(regex("(:[^/]+|@sha256:[0-9a-f]{64})$", var.image)) && !endswith(var.image, ":latest")
    error_message = "image: name a version, such as registry.example.com/millrace:v1.2.3; latest is none."
  }
}

variable "passwords" {
  description = "Passwords: of PostgreSQL's superuser and its four users, of RabbitMQ's user, of Redis and of Grafana's admin, and the cookie of RabbitMQ's nodes. Each is a secret of the swarm."
  type = object({
    postgres = string
    owner    = string
    writer   = string
    reader   = string
    monitor  = string
    rabbitmq = string
    cookie   = string
    redis    = string
    grafana  = string
  })
  sensitive = true
  validation {
    condition     = alltrue([for p in values(var.passwords) : can(regex("^[A-Za-z0-9_-]{16,}$", p))])
    error_message = "passwords: each has at least 16 letters, digits, _ and - (they become parts of URLs)."
  }
  validation {
    condition     = length(distinct(values(var.passwords))) == length(values(var.passwords))
    error_message = "passwords: each is another."
  }
}

variable "keys" {
  description = "Content of the keys file, the lines that millrace keys new prints. Empty: nobody is asked for a key, which allow_anonymous must permit."
  type        = string
  default     = ""
  sensitive   = true
  validation {
    condition     = var.keys != "" || var.allow_anonymous
    error_message = "keys: without keys everybody who reaches a host may write and read; set keys, or allow_anonymous = true."
  }
}

variable "allow_anonymous" {
  description = "Serve without keys. The swarm publishes ports on all addresses of its hosts."
  type        = bool
  default     = false
}

variable "archive" {
  description = "The bucket of S3 that closed partitions are copied to: ARCHIVE_URL, and AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, as deploy/OPERATIONS.md has them. Without a key that of the hosts' role is used. Empty: there is no archive."
  type        = object({ url = string, key_id = optional(string, ""), secret = optional(string, "") })
  default     = { url = "" }
  sensitive   = true
  validation {
    condition     = var.archive.url == "" || can(regex("^s3://[^']+$", var.archive.url))
    error_message = "archive: url is as in s3://bucket/prefix?region=eu-central-1; a folder would be another one on each host."
  }
  validation {
    condition     = (var.archive.key_id == "") == (var.archive.secret == "") && !strcontains("${var.archive.key_id}${var.archive.secret}", "'")
    error_message = "archive: key_id and secret are set both or not at all, and have no apostrophe."
  }
}

variable "searches" {
  description = "What the file of searches says that are counted and that alert (deploy/ALERTS.md), such as file(\"searches.yaml\"). It is a secret of the swarm, for it may hold receivers' URLs. Empty: there are none."
  type        = string
  default     = ""
  sensitive   = true
  validation {
    condition     = var.searches == "" || can(yamldecode(var.searches))
    error_message = "searches: takes YAML; millrace searches check FILE says more."
  }
}

variable "replicas" {
  description = "How many of each service run."
  type = object({
    api    = optional(number, 2)
    worker = optional(number, 1)
    query  = optional(number, 1)
  })
  default = {}
  validation {
    condition     = alltrue([for n in values(var.replicas) : n >= 1 && n <= 16 && floor(n) == n])
    error_message = "replicas: 1 to 16, as many as the balancer has places for."
  }
}

variable "brokers" {
  description = "Nodes of RabbitMQ: 1, or 3 so that one may fail."
  type        = number
  default     = 1
  validation {
    condition     = contains([1, 3], var.brokers)
    error_message = "brokers: 1 or 3; two are no safer than one."
  }
}

variable "monitoring" {
  description = "Run Prometheus, Grafana and postgres_exporter, with the alerts and dashboards of deploy/."
  type        = bool
  default     = true
}

variable "ports" {
  description = "Ports that are published on every host. grafana = 0: not published."
  type = object({
    api     = optional(number, 8080)
    query   = optional(number, 8081)
    grafana = optional(number, 3000)
  })
  default = {}
  validation {
    condition     = alltrue([for p in [var.ports.api, var.ports.query] : p >= 1 && p <= 65535]) && var.ports.grafana >= 0 && var.ports.grafana <= 65535
    error_message = "ports: 1 to 65535; 0 for a Grafana that is not published."
  }
}

variable "settings" {
  description = "Settings of api, worker and query by the names of deploy/SETTINGS.md, such as { QUEUE_SHARDS = \"4\", RETENTION = \"720h\" }. Addresses, URLs and keys are not among them."
  type        = map(string)
  default     = {}
  validation {
    condition     = alltrue([for name in keys(var.settings) : can(regex("^[A-Z][A-Z0-9_]*$", name)) && !can(regex("_(URL|ADDR|FILE)$", name)) && !contains(["ALLOW_ANONYMOUS", "AUTO_MIGRATE"], name)])
    error_message = "settings: names such as QUEUE_SHARDS; what ends in _URL, _ADDR or _FILE, ALLOW_ANONYMOUS and AUTO_MIGRATE are the module's."
  }
}

variable "placement" {
  description = "On which hosts services run, by name of the service: lists of the swarm's constraints, such as { postgres = [\"node.hostname==db1\"] }. With several hosts, what has a volume (postgres, rabbitmq, rabbitmq-2, rabbitmq-3, prometheus, grafana) needs one each: a volume is on one host."
  type        = map(list(string))
  default     = {}
  validation {
    condition     = length(setsubtract(keys(var.placement), ["balancer", "api", "worker", "query", "migrate", "roles", "postgres", "rabbitmq", "rabbitmq-2", "rabbitmq-3", "redis", "prometheus", "postgres-exporter", "grafana"])) == 0
    error_message = "placement: names services of this installation: balancer, api, worker, query, migrate, roles, postgres, rabbitmq, rabbitmq-2, rabbitmq-3, redis, prometheus, postgres-exporter, grafana."
  }
}

variable "memory" {
  description = "Memory limits in bytes, by name of the service, where they are not those of docker-compose.yml. What a server's own settings make of its memory stays as it is."
  type        = map(number)
  default     = {}
}

variable "balancer_connections" {
  description = "Connections that a balancer has at once. Each takes two open files: with fewer than twice as many HAProxy does not start."
  type        = number
  default     = 12000
  validation {
    condition     = var.balancer_connections >= 100 && floor(var.balancer_connections) == var.balancer_connections
    error_message = "balancer_connections: a whole number, at least 100."
  }
}

variable "encrypt_network" {
  description = "Encrypt what the hosts send each other (IPsec). Needed unless their network is trusted; costs throughput. A change makes the network and all services anew."
  type        = bool
  default     = false
}

variable "wait" {
  description = "Wait until the services run, and roll back an update of api, worker or query that does not come up."
  type        = bool
  default     = true
}
