locals {
  rules      = fileset("${local.deploy}/prometheus/rules", "*.yml")
  dashboards = fileset("${local.deploy}/grafana/dashboards", "*.json")

  monitoring = {
    prometheus = {
      image = local.compose.prometheus.image
      # compose's, with its default of how long samples are kept.
      args = [for a in local.compose.prometheus.command : replace(a, "/\\$\\{[A-Z_]+:-([^}]+)\\}/", "$1")]
      configs = merge(
        { "prometheus.yml" = "/etc/prometheus/prometheus.yml" },
        { for f in local.rules : "rules/${f}" => "/etc/prometheus/rules/${f}" },
      )
      volumes = { prometheus = "/prometheus" }
    }
    postgres-exporter = {
      image = local.compose.postgres-exporter.image
      env = {
        DATA_SOURCE_URI       = local.compose.postgres-exporter.environment.DATA_SOURCE_URI
        DATA_SOURCE_USER      = local.compose.postgres-exporter.environment.DATA_SOURCE_USER
        DATA_SOURCE_PASS_FILE = "/run/secrets/password"
      }
      secrets = { monitor = "/run/secrets/password" }
    }
    grafana = {
      image = local.compose.grafana.image
      env = merge(
        { for name, value in local.compose.grafana.environment : name => value if value != null && !can(regex("PASSWORD", name)) },
        { GF_SECURITY_ADMIN_PASSWORD__FILE = "/run/secrets/admin" },
      )
      secrets    = { grafana = "/run/secrets/admin", reader = "/run/secrets/reader" }
      secret_uid = "472"
      configs = merge(
        { for f in local.provisioning : "provisioning/${f}" => "/etc/grafana/provisioning/${f}" },
        { for f in local.dashboards : "dashboards/${f}" => "/var/lib/grafana/dashboards/${f}" },
      )
      volumes = { grafana = "/var/lib/grafana" }
      ports   = { for target, published in { 3000 = var.ports.grafana } : target => published if published > 0 }
    }
  }

  provisioning = fileset("${local.deploy}/grafana/provisioning", "**/*.yml")
  monitoring_configs = merge(
    { "prometheus.yml" = file("${local.deploy}/prometheus/prometheus.yml") },
    { for f in local.rules : "rules/${f}" => file("${local.deploy}/prometheus/rules/${f}") },
    { for f in local.dashboards : "dashboards/${f}" => file("${local.deploy}/grafana/dashboards/${f}") },
    # Grafana reads the password from the secret's file.
    { for f in local.provisioning : "provisioning/${f}" => replace(file("${local.deploy}/grafana/provisioning/${f}"), "$GRAFANA_POSTGRES_PASSWORD", "$__file{/run/secrets/reader}") },
  )
}
