package e2e

import (
	"testing"

	"millrace/internal/cli"
	"millrace/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m, cli.Main) }
