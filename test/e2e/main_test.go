//go:build e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"
)

// lab is the cluster under test, which every test shares: making pods ready
// costs more than most of what is checked with them.
var lab *cluster

// settings are what the environment may change.
type settings struct {
	// Image is the pods'; it must know the argument "pause" and be on the nodes,
	// or where they can pull it.
	Image string
	// Engine is the command that holds the nodes: docker, podman or nerdctl.
	Engine string
	// Outage is how long the API server is away, Idle how long nobody may write.
	Outage, Idle time.Duration
	// Churn is how many pods come and go.
	Churn int
	// Manifest is what was applied to install the network.
	Manifest string
}

func readSettings() (settings, error) {
	s := settings{
		Image:    or("E2E_IMAGE", "registry.k8s.io/e2e-test-images/agnhost:2.56"),
		Engine:   or("E2E_ENGINE", "docker"),
		Manifest: or("E2E_MANIFEST", "../../deploy/daemonset.yaml"),
	}
	var err error
	if s.Outage, err = time.ParseDuration(or("E2E_API_OUTAGE", "5m")); err != nil {
		return s, fmt.Errorf("E2E_API_OUTAGE: %w", err)
	}
	if s.Idle, err = time.ParseDuration(or("E2E_IDLE", "10m")); err != nil {
		return s, fmt.Errorf("E2E_IDLE: %w", err)
	}
	if s.Churn, err = strconv.Atoi(or("E2E_CHURN", "200")); err != nil {
		return s, fmt.Errorf("E2E_CHURN: %w", err)
	}
	return s, nil
}

func or(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	ctx := context.Background()
	s, err := readSettings()
	if err == nil {
		lab, err = newCluster(ctx, s)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	code := m.Run()
	if err := lab.close(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	return code
}
