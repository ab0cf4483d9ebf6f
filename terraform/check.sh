#!/usr/bin/env bash
# terraform/check.sh: formatting, validation and tests of this folder, with the docker provider built from its Go
# module, so that no registry of providers is asked. The build takes some minutes, once: it is kept in ~/.cache.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v terraform >/dev/null; then
	echo "terraform is not installed (https://developer.hashicorp.com/terraform/install): terraform/ is not checked"
	exit 0
fi

version=4.6.0 # of the provider's release that go.mod's commit follows
cache=${XDG_CACHE_HOME:-$HOME/.cache}/millrace/terraform-$(cat provider/go.mod provider/go.sum | sha256sum | cut -c1-16)
plugin=$cache/mirror/registry.terraform.io/kreuzwerker/docker/$version/$(go env GOOS)_$(go env GOARCH)/terraform-provider-docker_v$version
if [ ! -x "$plugin" ]; then
	echo "building the docker provider"
	mkdir -p "$(dirname "$plugin")"
	part=$plugin.part.$$ # two checks at once may both build it
	(cd provider && go build -trimpath -ldflags "-s -w -X main.version=$version" -o "$part" github.com/terraform-providers/terraform-provider-docker)
	mv "$part" "$plugin"
fi

# Terraform writes a lock file and a data folder beside the configuration: both into a copy that goes again.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/terraform.rc" <<-RC
	disable_checkpoint = true
	provider_installation {
	  filesystem_mirror {
	    path = "$cache/mirror"
	  }
	}
RC
export TF_CLI_CONFIG_FILE=$work/terraform.rc TF_IN_AUTOMATION=1
terraform fmt -check -diff -recursive .
cp -r ../docker-compose.yml ../deploy ../terraform "$work"
cd "$work/terraform"
terraform init -input=false >/dev/null
terraform validate
terraform test
for example in examples/*/; do
	echo "$example"
	terraform -chdir="$example" init -input=false >/dev/null
	terraform -chdir="$example" validate
done
