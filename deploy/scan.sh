#!/usr/bin/env bash
# deploy/scan.sh: what make scan runs. It writes bin/millrace.cdx.json, the parts of bin/millrace with their versions, sums and
# licenses (an SBOM in CycloneDX's format), and looks for known vulnerabilities in the functions that are in that program.
#
# The list of vulnerabilities is the Go project's own, of its newest module golang.org/x/vulndb; VULNDB=URL takes another, such
# as https://vuln.go.dev. It ends with 3 where there is one.
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p bin
if [ bin/govulncheck -ot deploy/scan/go.sum ] || [ bin/cyclonedx-gomod -ot deploy/scan/go.sum ]; then
	go -C deploy/scan mod tidy -diff
	go -C deploy/scan build -trimpath -o ../../bin/ golang.org/x/vuln/cmd/govulncheck github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod
	touch bin/govulncheck bin/cyclonedx-gomod
fi

bin/cyclonedx-gomod bin -json -std -licenses -version "${VERSION:-dev}" -output bin/millrace.cdx.json bin/millrace 2>bin/scan.log || {
	cat bin/scan.log >&2
	exit 1
}
echo "bin/millrace.cdx.json: $(grep -c '"type": "library"' bin/millrace.cdx.json) modules"

if [ -z "${VULNDB:-}" ]; then
	found=$(cd /tmp && go mod download -json golang.org/x/vulndb@latest)
	dir=$(sed -nE 's/^\t"Dir": "(.*)",?$/\1/p' <<<"$found")
	echo "Vulnerabilities known on $(sed -nE 's/^\t"Version": ".*-([0-9]{8})[0-9]{6}-.*$/\1/p' <<<"$found"): $(find "$dir/data/osv" -name 'GO-*.json' | wc -l)"
	VULNDB=file://$dir/data/osv
fi
bin/govulncheck -mode=binary -db "$VULNDB" bin/millrace
