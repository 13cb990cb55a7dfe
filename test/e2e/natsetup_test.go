//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Names of deploy/daemonset.yaml and deploy/relay.yaml.
const (
	configFile = "overlayd.yaml"
	relayName  = "overlayd-relay"
	relayLabel = annotations + "relay"
)

// natSetup is what an administrator does for nodes behind NATs.
type natSetup struct {
	servers []string // for STUN
	relay   *node

	// was is the daemons' configuration before, empty while it is in force.
	was string
	// manifest makes relays.
	manifest *manifest
}

// do names the servers in the daemons' ConfigMap, makes a node a relay, and
// restarts the daemons.
func (s *natSetup) do(ctx context.Context) error {
	set, err := lab.client.AppsV1().DaemonSets(daemonNamespace).Get(ctx, daemonName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	image := set.Spec.Template.Spec.Containers[0].Image
	s.manifest, err = lab.readManifest(filepath.Join(filepath.Dir(lab.Manifest), "relay.yaml"), image)
	if err != nil {
		return err
	}
	config, err := lab.client.CoreV1().ConfigMaps(daemonNamespace).Get(ctx, daemonName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	s.was = config.Data[configFile]
	list := strings.Join(s.servers, `", "`)
	if err := configureDaemons(ctx, fmt.Sprintf("%snat:\n  stun_servers: [\"%s\"]\n  stun_refresh_interval_secs: 10\n", s.was, list)); err != nil {
		return err
	}
	if err := s.label(ctx, `"true"`); err != nil {
		return err
	}
	if err := s.manifest.apply(ctx); err != nil {
		return err
	}
	if err := lab.restartDaemons(ctx); err != nil {
		return err
	}
	return errors.Join(lab.awaitRollout(ctx, relayName), s.awaitOffer(ctx, true))
}

// undo has everything as it was before do, if it is not yet.
func (s *natSetup) undo(ctx context.Context) error {
	if s.was == "" {
		return nil
	}
	if err := configureDaemons(ctx, s.was); err != nil {
		return err
	}
	if err := s.label(ctx, "null"); err != nil {
		return err
	}
	if err := s.manifest.remove(ctx); err != nil {
		return err
	}
	if err := lab.restartDaemons(ctx); err != nil {
		return err
	}
	s.was = ""
	return s.awaitOffer(ctx, false)
}

func configureDaemons(ctx context.Context, text string) error {
	patch, err := json.Marshal(map[string]any{"data": map[string]string{configFile: text}})
	if err != nil {
		return err
	}
	_, err = lab.client.CoreV1().ConfigMaps(daemonNamespace).Patch(ctx, daemonName, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// label gives the relay's Node its label, or takes it away.
func (s *natSetup) label(ctx context.Context, value string) error {
	patch := fmt.Sprintf(`{"metadata":{"labels":{%q:%s}}}`, relayLabel, value)
	_, err := lab.client.CoreV1().Nodes().Patch(ctx, s.relay.name, types.MergePatchType, []byte(patch), metav1.PatchOptions{})
	return err
}

// awaitOffer waits until the relay says how it is reached, or says so no longer.
func (s *natSetup) awaitOffer(ctx context.Context, want bool) error {
	return poll(ctx, patience, func(ctx context.Context) error {
		offer, err := annotationOf(ctx, s.relay, "relay")
		if err == nil && (offer != "") != want {
			err = fmt.Errorf("%s offers the relay %q", s.relay.name, offer)
		}
		return err
	})
}
