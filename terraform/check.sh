#!/usr/bin/env bash
# terraform/check.sh: formatting, validation and tests of this folder, with a provider that makes nothing.
# terraform/swarm.sh runs it for real.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v terraform >/dev/null; then
	echo "terraform is not installed (https://developer.hashicorp.com/terraform/install): terraform/ is not checked"
	exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck source=terraform/provider.sh
. ./provider.sh
terraform fmt -check -diff -recursive .
cd "$work/terraform"
terraform init -input=false >/dev/null
terraform validate
terraform test
for example in examples/*/; do
	echo "$example"
	terraform -chdir="$example" init -input=false >/dev/null
	terraform -chdir="$example" validate
done
