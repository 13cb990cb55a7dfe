package nat

import (
	"errors"
	"fmt"
	"time"
)

// The defaults of [Config].
const (
	DefaultHolePunchTimeout  = 15 * time.Second
	DefaultRefreshInterval   = time.Minute
	DefaultMaxCandidatePairs = 10
)

// Config says how a node looks for ways to its peers. Of the zero value every
// field has its default, and no server is asked for anything.
type Config struct {
	// STUNServers are asked what this node looks like from outside, as HOST:PORT.
	STUNServers []string
	// HolePunchTimeout is how long one search for a path to a peer may take.
	HolePunchTimeout time.Duration
	// RefreshInterval is how often this node's candidates are looked up again.
	RefreshInterval time.Duration
	// MaxCandidatePairs bounds the paths that one search tries.
	MaxCandidatePairs int
}

// Validate returns an error that names every field with which an [Agent] would
// not work.
func (c Config) Validate() error {
	var errs []error
	if c.HolePunchTimeout < 0 {
		errs = append(errs, fmt.Errorf("hole punch timeout %v: negative", c.HolePunchTimeout))
	}
	if c.RefreshInterval < 0 {
		errs = append(errs, fmt.Errorf("refresh interval %v: negative", c.RefreshInterval))
	}
	if c.MaxCandidatePairs < 0 {
		errs = append(errs, fmt.Errorf("candidate pairs %d: negative", c.MaxCandidatePairs))
	}
	return errors.Join(errs...)
}

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	if c.HolePunchTimeout == 0 {
		c.HolePunchTimeout = DefaultHolePunchTimeout
	}
	if c.RefreshInterval == 0 {
		c.RefreshInterval = DefaultRefreshInterval
	}
	if c.MaxCandidatePairs == 0 {
		c.MaxCandidatePairs = DefaultMaxCandidatePairs
	}
	return c
}
