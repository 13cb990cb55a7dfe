// Package apiserver is a small Kubernetes API server for tests: Nodes, Pods,
// ConfigMaps and Events over HTTP in JSON, with list, watch, metadata only,
// selectors, pages, and the kinds of patch that the daemon uses. It follows the
// real one where the daemon could tell: resource versions, watches from a
// version or with initial events, server-side apply's ownership of annotations.
//
// All methods are safe for concurrent use.
package apiserver

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Object is an object as JSON shows it.
type Object = map[string]any

// change is one step of the history that watches follow.
type change struct {
	version  int
	resource string
	kind     string // ADDED, MODIFIED or DELETED
	object   []byte
	before   Object // what it was, nil for a new one; never changed
}

// store holds the objects and what happened to them.
type store struct {
	mu      sync.Mutex // guards the fields below
	version int
	objects map[string]Object // by resource/namespace/name
	managed map[string][]string
	history []change
	changed chan struct{} // closed at the next change
}

func newStore() *store {
	return &store{objects: map[string]Object{}, managed: map[string][]string{}, changed: make(chan struct{})}
}

func keyOf(resource, namespace, name string) string { return resource + "/" + namespace + "/" + name }

// Metadata returns an object's metadata, which may be written to.
func Metadata(o Object) Object {
	m, ok := o["metadata"].(Object)
	if !ok {
		m = Object{}
		o["metadata"] = m
	}
	return m
}

func textOf(o Object, key string) string {
	text, _ := o[key].(string)
	return text
}

// clone copies an object deeply, as a trip over the network does.
func clone(o any) Object {
	data, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	var copied Object
	if err := json.Unmarshal(data, &copied); err != nil {
		panic(err)
	}
	return copied
}

// create adds an object and gives it a UID; ok is false if there is one.
func (s *store) create(resource string, o Object) (created Object, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o = clone(o)
	meta := Metadata(o)
	key := keyOf(resource, textOf(meta, "namespace"), textOf(meta, "name"))
	if _, exists := s.objects[key]; exists {
		return nil, false
	}
	if textOf(meta, "uid") == "" {
		meta["uid"] = fmt.Sprintf("00000000-0000-4000-8000-%012d", s.version+1)
	}
	if textOf(meta, "creationTimestamp") == "" {
		meta["creationTimestamp"] = time.Now().UTC().Format(time.RFC3339)
	}
	s.put(key, "ADDED", o)
	return o, true
}

// put stores an object with the next version; mu is held.
func (s *store) put(key, kind string, o Object) {
	s.version++
	Metadata(o)["resourceVersion"] = strconv.Itoa(s.version)
	resource, _, _ := strings.Cut(key, "/")
	before := s.objects[key]
	s.objects[key] = o
	if kind == "DELETED" {
		delete(s.objects, key)
		delete(s.managed, key)
	}
	data, err := json.Marshal(o)
	if err != nil {
		panic(err)
	}
	s.history = append(s.history, change{s.version, resource, kind, data, before})
	close(s.changed)
	s.changed = make(chan struct{})
}

// edit changes a copy of an object and stores it if it differs. An error of f
// stores nothing; found is false if there is no such object.
func (s *store) edit(key string, f func(Object) error) (edited Object, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before, found := s.objects[key]
	if !found {
		return nil, false, nil
	}
	after := clone(before)
	if err := f(after); err != nil {
		return nil, true, err
	}
	if fmt.Sprint(clone(after)) == fmt.Sprint(before) { // fmt prints maps in order
		return before, true, nil
	}
	s.put(key, "MODIFIED", clone(after))
	return s.objects[key], true, nil
}

func (s *store) remove(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, found := s.objects[key]
	if found {
		s.put(key, "DELETED", clone(o))
	}
	return found
}

func (s *store) get(key string) (Object, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o, found := s.objects[key]
	return o, found
}

// list returns the objects of a resource by name, and the version of the whole.
func (s *store) list(resource string) ([]Object, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []Object
	for _, key := range slices.Sorted(maps.Keys(s.objects)) {
		if strings.HasPrefix(key, resource+"/") {
			found = append(found, s.objects[key])
		}
	}
	return found, s.version
}

// since returns what happened after a version, and a channel that is closed
// when more has.
func (s *store) since(version int) ([]change, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	at, _ := slices.BinarySearchFunc(s.history, version+1, func(c change, v int) int { return c.version - v })
	return s.history[at:len(s.history):len(s.history)], s.changed
}
