package forwarding

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/zlayer/zlayer-cni/internal/durable"
)

// record is the content of RecordFile.
type record struct {
	// Boot is the kernel's name of the machine's start: the next one finds its
	// settings as they are configured, and none of them is our doing.
	Boot     string    `json:"boot"`
	Settings []setting `json:"settings"`
}

// setting is a file below /proc/sys/net that Enable changes.
type setting struct {
	Name string `json:"name"`
	// Was is its value before, and Is the one after.
	Was string `json:"was"`
	Is  string `json:"is"`

	follows bool // the kernel changes it, not we
}

// bootFile names the machine's start.
const bootFile = "/proc/sys/kernel/random/boot_id"

// parseRecord refuses what Enable cannot have written.
func parseRecord(data []byte) (record, error) {
	var r record
	if err := json.Unmarshal(data, &r); err != nil {
		return record{}, err
	}
	for _, s := range r.Settings {
		if !ofRules(s.Name) {
			return record{}, fmt.Errorf("%.100q is no setting that changes with forwarding", s.Name)
		}
	}
	return r, nil
}

func ofRules(name string) bool {
	return slices.ContainsFunc(families(), func(f family) bool {
		return name == f.toggle || slices.ContainsFunc(f.rules, func(r rule) bool {
			matches, _ := filepath.Match(r.pattern, name) // the patterns are good
			return matches && filepath.IsLocal(name) && filepath.Clean(name) == name
		})
	})
}

// load reads the record of this start of the machine, an empty one if there is none.
func load(stateDir string) (record, error) {
	boot, err := os.ReadFile(bootFile)
	if err != nil {
		return record{}, fmt.Errorf("identify the machine's start: %w", err)
	}
	none := record{Boot: string(bytes.TrimSpace(boot))}
	data, err := os.ReadFile(RecordFile(stateDir))
	if errors.Is(err, os.ErrNotExist) {
		return none, nil
	}
	if err != nil {
		return record{}, err
	}
	r, err := parseRecord(data)
	if err != nil {
		return record{}, fmt.Errorf("%s: %w", RecordFile(stateDir), err)
	}
	if r.Boot != none.Boot {
		return none, nil
	}
	return r, nil
}

// remember adds to the record what it lacks: what was before the first change is
// what counts. What follows a toggle that changes once more is of interfaces that
// came later, such as pods'.
func remember(stateDir string, changes []setting) error {
	r, err := load(stateDir)
	if err != nil {
		return fmt.Errorf("keep the host's kernel settings: %w", err)
	}
	knows := func(name string) bool {
		return slices.ContainsFunc(r.Settings, func(s setting) bool { return s.Name == name })
	}
	again := knows(changes[0].Name)
	for _, c := range changes {
		if !knows(c.Name) && !(again && c.follows) {
			r.Settings = append(r.Settings, c)
		}
	}
	data, err := json.Marshal(r)
	if err == nil {
		err = durable.Replace(RecordFile(stateDir), bytes.NewReader(data), 0o600)
	}
	if err != nil {
		return fmt.Errorf("keep the host's kernel settings: %w", err)
	}
	return nil
}

// recall returns what the record holds, in the order in which to put it back.
func recall(stateDir string) ([]setting, error) {
	r, err := load(stateDir)
	if err != nil {
		return nil, fmt.Errorf("read what the host's kernel settings were: %w", err)
	}
	return r.Settings, nil
}
