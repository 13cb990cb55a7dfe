package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Request is one that changed something, or was to.
type Request struct {
	Method, Path string
}

// Server is an API server. Make one with Start.
type Server struct {
	store *store
	http  *httptest.Server

	mu     sync.Mutex // guards the fields below
	writes []Request
	reads  map[string]int
	refuse func(*http.Request) int // a status to answer with, 0 for none
	broken chan struct{}           // closed while the server is away
}

// Start serves on this machine until the test ends.
func Start(t testing.TB) *Server {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return Serve(t, listener)
}

// Serve serves on a listener until the test ends.
func Serve(t testing.TB, listener net.Listener) *Server {
	s := &Server{store: newStore(), reads: map[string]int{}, broken: make(chan struct{})}
	s.http = &httptest.Server{Listener: listener, Config: &http.Server{Handler: s}}
	s.http.Start()
	t.Cleanup(func() {
		s.Break()
		s.http.CloseClientConnections()
		s.http.Close()
	})
	return s
}

// URL is where the server answers.
func (s *Server) URL() string { return s.http.URL }

// Kubeconfig writes credentials for the server into a folder of the test.
func (s *Server) Kubeconfig(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: %q}}]
users: [{name: u, user: {token: t}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
`, s.http.URL)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Break ends all connections and answers no more, as if the server were away.
func (s *Server) Break() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.broken:
	default:
		close(s.broken)
	}
}

// Mend undoes Break.
func (s *Server) Mend() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.broken = make(chan struct{})
}

// Refuse answers requests with the status that f says, unless it is 0.
func (s *Server) Refuse(f func(*http.Request) int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refuse = f
}

// Writes are the requests so far that were to change something.
func (s *Server) Writes() []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Request(nil), s.writes...)
}

// Reads counts the requests for a path that were to change nothing.
func (s *Server) Reads(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reads[path]
}

// Create adds an object: of a resource such as "nodes", named by its metadata.
func (s *Server) Create(resource string, o Object) {
	if _, ok := s.store.create(resource, o); !ok {
		panic("there is one already")
	}
}

// Edit changes an object.
func (s *Server) Edit(resource, namespace, name string, f func(Object)) {
	_, found, _ := s.store.edit(keyOf(resource, namespace, name), func(o Object) error { f(o); return nil })
	if !found {
		panic("there is none")
	}
}

// Delete removes an object.
func (s *Server) Delete(resource, namespace, name string) {
	if !s.store.remove(keyOf(resource, namespace, name)) {
		panic("there is none")
	}
}

// Get returns a copy of an object, nil if there is none.
func (s *Server) Get(resource, namespace, name string) Object {
	o, found := s.store.get(keyOf(resource, namespace, name))
	if !found {
		return nil
	}
	return clone(o)
}

// List returns copies of a resource's objects.
func (s *Server) List(resource string) []Object {
	found, _ := s.store.list(resource)
	copies := make([]Object, len(found))
	for i, o := range found {
		copies[i] = clone(o)
	}
	return copies
}

// ServeHTTP implements http.Handler.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	if r.Method == http.MethodGet {
		s.reads[r.URL.Path]++
	} else {
		s.writes = append(s.writes, Request{r.Method, r.URL.Path})
	}
	refuse, broken := s.refuse, s.broken
	s.mu.Unlock()
	select {
	case <-broken:
		panic(http.ErrAbortHandler)
	default:
	}
	if refuse != nil {
		if status := refuse(r); status != 0 {
			fail(w, status, "refused")
			return
		}
	}
	resource, namespace, name, ok := split(r.URL.Path)
	if !ok {
		fail(w, http.StatusNotFound, "no such path")
		return
	}
	switch {
	case r.Method == http.MethodGet && r.URL.Query().Get("watch") != "":
		s.watch(w, r, resource, broken)
	case r.Method == http.MethodGet && name == "":
		s.list(w, r, resource)
	case r.Method == http.MethodGet:
		o, found := s.store.get(keyOf(resource, namespace, name))
		answer(w, r, o, found, nil)
	case r.Method == http.MethodPatch:
		body := readBody(r)
		o, found, err := s.store.patch(keyOf(resource, namespace, name), r.Header.Get("Content-Type"), r.URL.Query().Get("fieldManager"), body)
		answer(w, r, o, found, err)
	case r.Method == http.MethodPost:
		s.post(w, r, resource)
	default:
		fail(w, http.StatusMethodNotAllowed, r.Method)
	}
}

// split takes /api/v1/[namespaces/NS/]RESOURCE[/NAME[/PART]] apart.
func split(path string) (resource, namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(path, "/api/v1/")
	parts := strings.Split(rest, "/")
	if len(parts) > 2 && parts[0] == "namespaces" {
		namespace, parts = parts[1], parts[2:]
	}
	if len(parts) > 1 {
		name = parts[1]
	}
	return parts[0], namespace, name, ok
}

func answer(w http.ResponseWriter, r *http.Request, o Object, found bool, err error) {
	switch {
	case errors.Is(err, errConflict):
		fail(w, http.StatusConflict, err.Error())
	case err != nil:
		fail(w, http.StatusUnprocessableEntity, err.Error())
	case !found:
		fail(w, http.StatusNotFound, "not found")
	default:
		send(w, http.StatusOK, shown(r, o))
	}
}

func (s *Server) post(w http.ResponseWriter, r *http.Request, resource string) {
	var o Object
	if err := json.Unmarshal(readBody(r), &o); err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	created, ok := s.store.create(resource, o)
	if !ok {
		fail(w, http.StatusConflict, "exists")
		return
	}
	send(w, http.StatusCreated, created)
}

// list answers in pages if the request asks for them.
func (s *Server) list(w http.ResponseWriter, r *http.Request, resource string) {
	objects, version := s.store.list(resource)
	query := r.URL.Query()
	items, selected := []Object{}, selectorOf(r)
	for _, o := range objects {
		if selected(o) {
			items = append(items, shown(r, o))
		}
	}
	meta := Object{"resourceVersion": strconv.Itoa(version)}
	start, _ := strconv.Atoi(query.Get("continue"))
	limit, _ := strconv.Atoi(query.Get("limit"))
	items = items[min(start, len(items)):]
	if limit > 0 && len(items) > limit && query.Get("resourceVersion") != "0" {
		items, meta["continue"] = items[:limit], strconv.Itoa(start+limit)
	}
	list := Object{"kind": kindOf(resource) + "List", "apiVersion": "v1", "metadata": meta, "items": items}
	if metadataOnly(r) {
		list["kind"], list["apiVersion"] = "PartialObjectMetadataList", "meta.k8s.io/v1"
	}
	send(w, http.StatusOK, list)
}

// kindOf names the objects of a resource.
func kindOf(resource string) string {
	return map[string]string{"nodes": "Node", "pods": "Pod", "namespaces": "Namespace", "configmaps": "ConfigMap", "events": "Event"}[resource]
}
