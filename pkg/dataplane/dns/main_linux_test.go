package dns

import (
	"os"
	"testing"

	"github.com/zlayer/zlayer-cni/test/netlab"
)

func TestMain(m *testing.M) { os.Exit(netlab.Main(m)) }
