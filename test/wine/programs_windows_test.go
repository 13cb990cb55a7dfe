package wine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// patience bounds one run of a program.
const patience = time.Minute

// nobody is a pipe that no daemon has.
const nobody = `\\.\pipe\zlayer-test-nobody`

// run starts a program of the folder that ZLAYER_BIN names, and waits for it.
// None of this process's CNI variables are passed on.
func run(t *testing.T, program, stdin string, env []string, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	folder := os.Getenv("ZLAYER_BIN")
	if folder == "" {
		t.Fatal("ZLAYER_BIN does not name the folder of the programs, as make build-windows makes it")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(folder, program), args...)
	for _, variable := range os.Environ() {
		if !strings.HasPrefix(variable, "CNI_") {
			cmd.Env = append(cmd.Env, variable)
		}
	}
	cmd.Env = append(cmd.Env, env...)
	var out, err bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &err
	failure := cmd.Run()
	if exit := new(exec.ExitError); failure != nil && !errors.As(failure, &exit) {
		t.Fatalf("run %s %q: %v", program, args, failure)
	}
	return cmd.ProcessState.ExitCode(), out.String(), err.String()
}

// conf is a network configuration with keys and values beside the usual ones.
func conf(t *testing.T, more map[string]any) string {
	t.Helper()
	keys := map[string]any{"cniVersion": "1.1.0", "name": "net", "type": "zlayer-cni", "socket": nobody, "stateDir": t.TempDir()}
	for key, value := range more {
		keys[key] = value
	}
	raw, err := json.Marshal(keys)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// plugin calls the plugin with whole variables, but for those of env.
func plugin(t *testing.T, verb, stdin string, env ...string) (status int, stdout, stderr string) {
	t.Helper()
	whole := []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=pod", "CNI_IFNAME=eth0", `CNI_PATH=C:\opt\cni\bin`,
		"CNI_NETNS=11111111-2222-4333-8444-555555555555",
	}
	return run(t, "zlayer-cni.exe", stdin, append(whole, env...))
}

func TestPluginVersion(t *testing.T) {
	status, stdout, stderr := plugin(t, "VERSION", `{"cniVersion":"1.0.0"}`)
	var got struct{ SupportedVersions []string }
	if err := json.Unmarshal([]byte(stdout), &got); err != nil || status != 0 || stderr != "" {
		t.Fatalf("exit %d, %v, standard error %q, output:\n%s", status, err, stderr, stdout)
	}
	if diff := cmp.Diff([]string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}, got.SupportedVersions); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
}

func TestPluginWithoutCommand(t *testing.T) {
	status, stdout, stderr := run(t, "zlayer-cni.exe", "", nil)
	if status != 0 || stdout != "" || !strings.Contains(stderr, "CNI plugin zlayer-cni ") {
		t.Errorf("exit %d, output %q, standard error:\n%s", status, stdout, stderr)
	}
}

// A failure is an object on standard output with the specification's code.
func TestPluginFails(t *testing.T) {
	usual := conf(t, nil)
	tests := []struct {
		name, verb, stdin string
		env               []string
		code              uint
		text              string
	}{
		{"unknown command", "FOO", usual, nil, 4, "CNI_COMMAND"},
		{"no variables", "ADD", usual, []string{"CNI_CONTAINERID=", "CNI_IFNAME=", "CNI_PATH=", "CNI_NETNS="}, 4, "[CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME,CNI_PATH]"},
		{"container ID", "ADD", usual, []string{"CNI_CONTAINERID=../etc"}, 4, "../etc"},
		{"half a configuration", "ADD", `{"cniVersion":`, nil, 6, "unexpected end"},
		{"no name", "ADD", `{"cniVersion":"1.1.0","type":"zlayer-cni"}`, nil, 7, "name"},
		{"version", "ADD", conf(t, map[string]any{"cniVersion": "9.9.9"}), nil, 1, "9.9.9"},
		{"MTU", "ADD", conf(t, map[string]any{"mtu": 100}), nil, 7, "mtu"},
		{"socket that is a file of Unix", "ADD", conf(t, map[string]any{"socket": "/run/zlayer/overlayd.sock"}), nil, 7, "/run/zlayer/overlayd.sock"},
		{"state folder that is a folder of Unix", "ADD", conf(t, map[string]any{"stateDir": "/var/lib/zlayer"}), nil, 7, "/var/lib/zlayer"},
		{"prevResult", "CHECK", usual, nil, 7, "prevResult"},
		{"namespace that is a path", "ADD", usual, []string{"CNI_NETNS=/run/netns/x"}, 8, "/run/netns/x"},
		{"namespace that is no GUID", "ADD", usual, []string{"CNI_NETNS=11111111-2222-4333-8444-55555555555g"}, 8, "not the GUID"},
		{"namespace of a container", "ADD", usual, []string{"CNI_NETNS=container:abc"}, 8, "HNS version 1"},
		{"no namespaces at all", "ADD", usual, []string{"CNI_NETNS=none"}, 8, "HNS version 1"},
		{"no daemon", "ADD", usual, nil, 11, nobody},
		{"no daemon", "STATUS", usual, nil, 50, nobody},
	}
	for _, tt := range tests {
		t.Run(tt.verb+" "+tt.name, func(t *testing.T) {
			status, stdout, stderr := plugin(t, tt.verb, tt.stdin, tt.env...)
			var got struct {
				Code         uint
				Msg, Details string
			}
			err := json.Unmarshal([]byte(stdout), &got)
			if err != nil || status == 0 || stderr != "" || got.Code != tt.code || !strings.Contains(got.Msg+" "+got.Details, tt.text) {
				t.Errorf("exit %d, %v, standard error %q, want code %d and %q, output:\n%s", status, err, stderr, tt.code, tt.text, stdout)
			}
		})
	}
}

// A DEL while the daemon is away succeeds, and leaves the daemon a tombstone.
func TestPluginDelWithoutDaemon(t *testing.T) {
	state := t.TempDir()
	for _, env := range []string{"CNI_NETNS=11111111-2222-4333-8444-555555555555", "CNI_NETNS="} {
		status, stdout, stderr := plugin(t, "DEL", conf(t, map[string]any{"stateDir": state}), env)
		if status != 0 || stdout != "" || stderr != "" {
			t.Errorf("%s: exit %d, output %q, standard error %q", env, status, stdout, stderr)
		}
	}
	left, err := filepath.Glob(filepath.Join(state, "tombstones", "*.json"))
	if err != nil || len(left) != 1 {
		t.Fatalf("tombstones %v, %v", left, err)
	}
	content, err := os.ReadFile(left[0])
	if err != nil || !strings.Contains(string(content), `"pod"`) {
		t.Errorf("tombstone %s, %v", content, err)
	}
}

// What the daemon's commands print, and how they fail: by one line.
func TestDaemonCommands(t *testing.T) {
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "overlayd.yaml")
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	tests := []struct {
		name      string
		args      []string
		out, fail string // patterns
	}{
		{"no command", nil, `(?s)Usage:.*run .*service .*status .*teardown .*version `, ""},
		{"version", []string{"version"}, `^overlayd \S+ \(go1\.\S+, windows/amd64\)\n$`, ""},
		{"help", []string{"run", "--help"}, `(?s)--cluster-cidrs .*--socket .*zlayer-overlayd.*--state-dir .*ProgramData`, ""},
		{"help of service", []string{"service", "--help"}, `(?s)install .*remove `, ""},
		{"unknown command", []string{"bogus"}, "", `unknown command "bogus"`},
		{"unknown command of service", []string{"service", "bogus"}, "", `unknown command "bogus" for "overlayd service"`},
		{"service without a configuration", []string{"service", "install"}, "", `--config: not set`},
		{"no configuration", []string{"run"}, "", `config: clusterCIDRs: not set`},
		{"configuration that is not there", []string{"run", `--config=C:\nowhere.yaml`}, "", `config: open C:\\nowhere\.yaml: `},
		{"unknown key", []string{"run", "--config=" + file("bogus: 1\n")}, "", `config \S+overlayd\.yaml: unknown key "bogus"`},
		{"pool", []string{"run", "--config=" + file("clusterCIDRs: [10.0.0.300/8]\n")}, "", `config \S+overlayd\.yaml: clusterCIDRs: "10\.0\.0\.300/8" is not a CIDR`},
		{"socket of Unix", []string{"run", "--config=" + file("clusterCIDRs: [10.0.0.0/8]\nkubernetes: true\nsocket: /run/x.sock\n")}, "", `config: socket: no named pipe`},
		{"status without a daemon", []string{"status", "--socket=" + nobody}, "", `overlayd is not reachable: open \\\\\.\\pipe\\zlayer-test-nobody: `},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, stdout, stderr := run(t, "overlayd.exe", "", nil, tt.args...)
			if tt.fail == "" {
				if status != 0 || stderr != "" || !regexp.MustCompile(tt.out).MatchString(stdout) {
					t.Errorf("exit %d, want %s, standard error %q, output:\n%s", status, tt.out, stderr, stdout)
				}
				return
			}
			if status != 1 || stdout != "" || !regexp.MustCompile(`^overlayd: `+tt.fail+`[^\n]*\n$`).MatchString(stderr) {
				t.Errorf("exit %d, output %q, want %s, standard error:\n%s", status, stdout, tt.fail, stderr)
			}
		})
	}
}
