# The docker provider, built from its Go module, so that no registry of providers is asked, and Terraform told of it. The
# build takes some minutes, once: it is kept in ~/.cache. Bash sources this file, in this folder, with $work, a folder
# that the caller removes: there a copy of the module is, since Terraform writes a lock file and a data folder beside it.

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
cat >"$work/terraform.rc" <<-RC
	disable_checkpoint = true
	provider_installation {
	  filesystem_mirror {
	    path = "$cache/mirror"
	  }
	}
RC
export TF_CLI_CONFIG_FILE=$work/terraform.rc TF_IN_AUTOMATION=1
cp -r ../docker-compose.yml ../deploy ../terraform "$work"
