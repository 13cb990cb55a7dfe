//go:build linux

package attach_test

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/zlayer/zlayer-cni/pkg/dataplane/attach"
)

// TestReconcileWhileSandboxesVanish: the kernel takes a port apart piece by
// piece, so what a repair puts back may be of a link that is gone by then.
func TestReconcileWhileSandboxesVanish(t *testing.T) {
	const rounds, crowd = 10, 20
	n := newNode(t, "node", attach.Config{})
	for round := range rounds {
		pods := make([]*pod, crowd)
		for i := range pods {
			pods[i] = newPod(t, fmt.Sprintf("pod-%d-%d", round, i))
			n.must(t, pods[i].spec(i))
		}
		var vanishing sync.WaitGroup
		vanishing.Go(func() {
			for _, p := range pods {
				if err := errors.Join(p.file.Close(), p.Close()); err != nil {
					t.Error(err)
				}
			}
		})
		eventually(t, "all attachments are gone", func() bool {
			if err := n.Reconcile(t.Context()); err != nil {
				t.Fatal(err)
			}
			return len(n.List()) == 0
		})
		vanishing.Wait()
	}
}
