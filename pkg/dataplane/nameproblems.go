package dataplane

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
)

// So many problems are told: anybody's garbage may make thousands.
const (
	maxProblemsOfNode = 10
	maxNameProblems   = 100
	maxAddrsOfProblem = 3
)

// problems are what has no name, and why, of one source.
type problems struct {
	texts []string
	more  int            // how many others there are
	of    map[string]int // how many a node has
}

// add adds one that is a node's fault.
func (p *problems) add(node, format string, args ...any) {
	if p.of == nil {
		p.of = map[string]int{}
	}
	if p.of[node]++; p.of[node] > maxProblemsOfNode || len(p.texts) == maxNameProblems {
		p.more++
		return
	}
	p.texts = append(p.texts, fmt.Sprintf(format, args...))
}

// nameProblems are those of all sources. Safe for concurrent use. The zero value
// is ready.
type nameProblems struct {
	mu  sync.Mutex // guards all
	all map[problemSource]problems
}

// problemSource is a source of names, or one of its owners.
type problemSource struct{ source, owner string }

// set replaces a source's, or an owner's, and returns those that are new. Where
// there are very many already, no others are noted.
func (p *nameProblems) set(of problemSource, now problems) (fresh []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before := map[string]bool{}
	for other, had := range p.all {
		if other.source != of.source {
			continue
		}
		for _, text := range had.texts {
			before[text] = true
		}
	}
	for _, text := range now.texts {
		if !before[text] && len(p.all) < maxNameProblems {
			fresh = append(fresh, text)
		}
	}
	if of.owner == "" {
		maps.DeleteFunc(p.all, func(other problemSource, _ problems) bool { return other.source == of.source })
	}
	delete(p.all, of)
	if len(now.texts) > 0 && len(p.all) < maxNameProblems {
		if p.all == nil {
			p.all = map[problemSource]problems{}
		}
		p.all[of] = now
	}
	return fresh
}

// list is what people are shown of them.
func (p *nameProblems) list() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	order := slices.SortedFunc(maps.Keys(p.all), func(a, b problemSource) int {
		return cmp.Or(strings.Compare(a.source, b.source), strings.Compare(a.owner, b.owner))
	})
	var texts []string
	more := 0
	for _, of := range order {
		texts = append(texts, p.all[of].texts...)
		more += p.all[of].more
	}
	if len(texts) > maxNameProblems {
		more += len(texts) - maxNameProblems
		texts = texts[:maxNameProblems]
	}
	if more > 0 {
		texts = append(texts, fmt.Sprintf("and %d more", more))
	}
	return texts
}

// refused is what the zone did not take.
func refused(err error) problems {
	if err == nil {
		return problems{}
	}
	return problems{texts: []string{strings.ReplaceAll(err.Error(), "\n", "; ")}}
}
