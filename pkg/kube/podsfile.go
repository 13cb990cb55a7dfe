package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/zlayer/zlayer-cni/internal/durable"
)

const (
	// podsVersion is the format of the file of pods; another is not read.
	podsVersion = 1
	// podsLimit bounds it, in bytes: 100,000 pods take some 20 MiB.
	podsLimit = 64 << 20
	// podsKeep is how long what lies on disk may be older than what is known, so
	// that a cluster in which pods come and go all the time is not all writing.
	podsKeep = 15 * time.Second
)

// savedPods are the pods of services as they lie on disk, so that a start without
// an API server knows their names.
type savedPods struct {
	Version int `json:"version"`
	// UID is that of this node's Node: another may be one of another cluster.
	UID  types.UID  `json:"uid"`
	Pods []savedPod `json:"pods"`
}

// savedPod is a namedPod.
type savedPod struct {
	Namespace string       `json:"namespace"`
	Name      string       `json:"name"`
	Service   string       `json:"service"`
	Node      string       `json:"node"`
	UID       string       `json:"uid"`
	Addrs     []netip.Addr `json:"addrs"`
	Ready     bool         `json:"ready,omitempty"`
}

// PodsFile is the path of the last pods of services below a state directory.
func PodsFile(stateDir string) string { return filepath.Join(stateDir, "pods.json") }

// parsePods decodes what formatPods wrote for the Node with that UID.
func parsePods(data []byte, uid types.UID) ([]namedPod, error) {
	var saved savedPods
	if err := json.Unmarshal(data, &saved); err != nil {
		return nil, err
	}
	if saved.Version != podsVersion {
		return nil, fmt.Errorf("version %d, want %d", saved.Version, podsVersion)
	}
	if saved.UID != uid {
		return nil, fmt.Errorf("it is of Node %.50q, not %q", saved.UID, uid)
	}
	pods := make([]namedPod, len(saved.Pods))
	for i, p := range saved.Pods {
		pods[i] = namedPod(p)
	}
	return pods, nil
}

func formatPods(pods []namedPod, uid types.UID) ([]byte, error) {
	saved := savedPods{Version: podsVersion, UID: uid, Pods: make([]savedPod, len(pods))}
	for i, p := range pods {
		saved.Pods[i] = savedPod(p)
	}
	data, err := json.Marshal(saved)
	if err == nil && len(data) > podsLimit {
		err = fmt.Errorf("%d pods take %d bytes, of at most %d", len(pods), len(data), podsLimit)
	}
	return data, err
}

// restorePods hands over the pods that lie on disk.
func (k *Kube) restorePods(uid types.UID) {
	if k.cfg.LastPods == nil {
		return
	}
	path := PodsFile(k.cfg.StateDir)
	data, err := readState(path, podsLimit)
	if err == nil && data == nil {
		return
	}
	var pods []namedPod
	if err == nil {
		pods, err = parsePods(data, uid)
	}
	if err != nil {
		k.log.Warn("last pods of services not used", "op", "kube", "file", path, "err", err)
		return
	}
	k.cfg.LastPods(pods)
}

// savePods writes pods down.
func (k *Kube) savePods(pods []namedPod) error {
	own, found := k.own.Get(k.cfg.Node)
	if !found {
		return fmt.Errorf("no Node %s at the API server", k.cfg.Node)
	}
	data, err := formatPods(pods, own.uid)
	if err != nil {
		return err
	}
	return durable.Replace(PodsFile(k.cfg.StateDir), bytes.NewReader(data), 0o600)
}
