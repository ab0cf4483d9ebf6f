//go:build !containers

package localstack

import (
	"strings"
	"testing"
)

func TestWithoutTheTagContainersAreAnErrorThatSaysHowToBuildThem(t *testing.T) {
	t.Setenv(stackSetting, "containers")
	_, err := Start(t.Context(), Options{Need: all})
	if err == nil || !strings.Contains(err.Error(), "MILLRACE_STACK=containers: this program is built without the tag containers; build it with ") ||
		strings.Contains(err.Error(), "\n") {
		t.Errorf("got %v, want one line that names the tag and how to build", err)
	}
}
