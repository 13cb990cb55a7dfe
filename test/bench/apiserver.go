//go:build linux

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/zlayer/zlayer-cni/test/demo/cluster"
	"github.com/zlayer/zlayer-cni/test/netlab"
)

// apiServer is a real one with its etcd on a machine of the lab, without the
// rest of a control plane.
type apiServer struct {
	ns        *netlab.NS
	dir       string
	address   netip.AddrPort
	processes []*cluster.Process
	client    *http.Client
}

// apiToken is good for everything on that server, which only the lab reaches.
const apiToken = "bench"

// controlPlane are the programs that an apiServer consists of.
func controlPlane() []string { return []string{"etcd", "kube-apiserver"} }

// findControlPlane returns an error that names what is missing.
func findControlPlane() error {
	var errs []error
	for _, name := range controlPlane() {
		_, err := exec.LookPath(name)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// startAPIServer starts both programs at ns, whose address is addr, and returns
// when the server is ready. The error says what their logs end with.
func startAPIServer(ctx context.Context, ns *netlab.NS, addr netip.Addr, dir string) (*apiServer, error) {
	a := &apiServer{ns: ns, dir: dir, address: netip.AddrPortFrom(addr, 6443)}
	a.client = &http.Client{Transport: &http.Transport{
		DialContext: a.dial, MaxIdleConnsPerHost: 64,
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	err := a.writeFiles()
	if err == nil {
		err = a.startPrograms(ctx)
	}
	if err == nil {
		err = a.awaitReady(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

// dial connects from the server's own machine.
func (a *apiServer) dial(ctx context.Context, network, address string) (conn net.Conn, err error) {
	err = a.ns.Do(func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// writeFiles writes the server's keys and the clients' credentials.
func (a *apiServer) writeFiles() error {
	if err := os.MkdirAll(a.dir, 0o700); err != nil {
		return err
	}
	const bits = 2048
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return err
	}
	credentials := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: bench, cluster: {server: "https://%v", insecure-skip-tls-verify: true}}]
users: [{name: bench, user: {token: %s}}]
contexts: [{name: bench, context: {cluster: bench, user: bench}}]
current-context: bench
`, a.address, apiToken)
	files := map[string]string{
		"tokens":     apiToken + ",bench,bench\n",
		"kubeconfig": credentials,
		"accounts":   string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(a.dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (a *apiServer) startPrograms(ctx context.Context) error {
	const etcd = "http://127.0.0.1:2379"
	accounts := filepath.Join(a.dir, "accounts")
	commands := map[string][]string{
		"etcd": {
			"--data-dir=" + filepath.Join(a.dir, "data"), "--unsafe-no-fsync", "--listen-peer-urls=http://127.0.0.1:2380",
			"--listen-client-urls=" + etcd, "--advertise-client-urls=" + etcd,
		},
		"kube-apiserver": {
			"--etcd-servers=" + etcd, "--secure-port=6443", "--advertise-address=" + a.address.Addr().String(),
			"--cert-dir=" + filepath.Join(a.dir, "certificates"), "--service-cluster-ip-range=10.255.0.0/16",
			"--service-account-issuer=https://bench", "--service-account-key-file=" + accounts,
			"--service-account-signing-key-file=" + accounts, "--token-auth-file=" + filepath.Join(a.dir, "tokens"),
			"--authorization-mode=AlwaysAllow",
		},
	}
	for _, name := range controlPlane() {
		if err := a.start(ctx, name, commands[name]); err != nil {
			return err
		}
	}
	return nil
}

func (a *apiServer) start(ctx context.Context, name string, args []string) error {
	log, err := os.Create(filepath.Join(a.dir, name+".log"))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the child has its own copy
	cmd := a.ns.Command(context.WithoutCancel(ctx), name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Setpgid = true
	process, err := cluster.Start(cmd)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	a.processes = append(a.processes, process)
	return nil
}

func (a *apiServer) awaitReady(ctx context.Context) error {
	const patience, interval = time.Minute, 200 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for {
		err := a.call(ctx, http.MethodGet, "/readyz", "", nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("start an API server: %w; its log ends with: %s", err, a.logTail())
		case <-time.After(interval):
		}
	}
}

func (a *apiServer) logTail() string {
	const most = 1000
	text, _ := os.ReadFile(filepath.Join(a.dir, "kube-apiserver.log"))
	return strings.TrimSpace(string(text[max(0, len(text)-most):]))
}

// call makes a request and wants it to succeed.
func (a *apiServer) call(ctx context.Context, method, path, mediaType string, body any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := a.request(ctx, method, path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", mediaType)
	response, err := a.client.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	answer, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode >= http.StatusBadRequest {
		err = fmt.Errorf("%s %s: %s: %s", method, path, response.Status, answer)
	}
	return err
}

// request has the credentials, and the name that kubelets give.
func (a *apiServer) request(ctx context.Context, method, path string, body io.Reader) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, "https://"+a.address.String()+path, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+apiToken)
	request.Header.Set("User-Agent", "kubelet/bench")
	return request, nil
}

func (a *apiServer) close() error {
	a.client.CloseIdleConnections()
	var errs []error
	for i := len(a.processes) - 1; i >= 0; i-- {
		process := a.processes[i]
		if err := process.Cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
			continue
		}
		_ = process.Wait() // killed
	}
	return errors.Join(errs...)
}
