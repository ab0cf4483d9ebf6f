// Package deploy tests what an installation is made of: docker-compose.yml, the image, what make install copies, and the
// files and guides in this folder. It has no code of the product.
//
// Its tests name files by their paths from the repository's top, where TestMain goes.
package deploy

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"millrace/internal/cli"
	"millrace/internal/testenv"
)

var update = flag.Bool("update", false, "write METRICS.md anew")

func TestMain(m *testing.M) {
	testenv.BecomeMillrace(cli.Main)
	if err := os.Chdir(".."); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}
