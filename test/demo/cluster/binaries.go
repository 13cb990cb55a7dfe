//go:build linux

package cluster

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BinariesEnv names a folder of binaries that are already built.
const BinariesEnv = "ZLAYER_BIN"

// Binaries returns the absolute folder of overlayd and zlayer-cni: that of
// BinariesEnv, else dir, after building them there as a release is built. It
// must be called in the module's folder.
func Binaries(ctx context.Context, dir string) (string, error) {
	if built := os.Getenv(BinariesEnv); built != "" {
		return existing(built)
	}
	for _, name := range []string{"overlayd", "zlayer-cni"} {
		if err := Build(ctx, filepath.Join(dir, name), "./cmd/"+name); err != nil {
			return "", err
		}
	}
	return dir, nil
}

func existing(dir string) (string, error) {
	for _, name := range []string{"overlayd", "zlayer-cni"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("%s: %w (make build puts them there)", BinariesEnv, err)
		}
	}
	return filepath.Abs(dir)
}

// Build builds one command as a release is built: static and stripped.
func Build(ctx context.Context, output, command string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", output, command)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w: %s", command, err, out)
	}
	return nil
}
