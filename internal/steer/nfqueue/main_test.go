package nfqueue

import (
	"os"
	"testing"

	"weir/internal/lab"
)

func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
