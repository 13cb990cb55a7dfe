package apiserver

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// watch streams changes from a version, or first what there is.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource string, broken <-chan struct{}) {
	query := r.URL.Query()
	version, _ := strconv.Atoi(query.Get("resourceVersion"))
	w.Header().Set("Content-Type", "application/json")
	stream := &stream{s: s, w: w, r: r, selector: query.Get("fieldSelector")}
	if query.Get("sendInitialEvents") == "true" {
		var objects []Object
		objects, version = s.store.list(resource)
		for _, o := range objects {
			stream.send("ADDED", o)
		}
		bookmark := Object{"kind": "Node", "apiVersion": "v1", "metadata": Object{
			"resourceVersion": strconv.Itoa(version), "annotations": Object{"k8s.io/initial-events-end": "true"},
		}}
		stream.selector = ""
		stream.send("BOOKMARK", bookmark)
		stream.selector = query.Get("fieldSelector")
	}
	for {
		select {
		case <-broken:
			panic(http.ErrAbortHandler)
		default:
		}
		stream.flush()
		changes, more := s.store.since(version)
		for _, c := range changes {
			version = c.version
			var o Object
			if c.resource != resource || json.Unmarshal(c.object, &o) != nil {
				continue
			}
			stream.send(c.kind, o)
		}
		if len(changes) > 0 {
			continue
		}
		select {
		case <-more:
		case <-broken:
			panic(http.ErrAbortHandler)
		case <-r.Context().Done():
			return
		}
	}
}

type stream struct {
	s        *Server
	w        http.ResponseWriter
	r        *http.Request
	selector string
}

func (t *stream) send(kind string, o Object) {
	if !selected(o, t.selector) {
		return
	}
	data, err := json.Marshal(Object{"type": kind, "object": shown(t.r, o)})
	if err != nil {
		panic(err)
	}
	_, _ = t.w.Write(append(data, '\n')) // a client that is gone ends the request
}

func (t *stream) flush() { t.w.(http.Flusher).Flush() }

// selected knows the two selectors that are of use here.
func selected(o Object, selector string) bool {
	field, want, _ := strings.Cut(selector, "=")
	switch field {
	case "":
		return true
	case "metadata.name":
		return textOf(Metadata(o), "name") == want
	case "spec.nodeName":
		spec, _ := o["spec"].(Object)
		return textOf(spec, "nodeName") == want
	default:
		return false
	}
}

func metadataOnly(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
}

// shown is an object as the request wants it.
func shown(r *http.Request, o Object) Object {
	if !metadataOnly(r) {
		return o
	}
	return Object{"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": o["metadata"]}
}

func send(w http.ResponseWriter, status int, o Object) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(o) // a client that is gone ends the request
}

func fail(w http.ResponseWriter, status int, message string) {
	reason := map[int]string{404: "NotFound", 403: "Forbidden", 409: "Conflict", 410: "Expired", 422: "Invalid"}[status]
	if message == "exists" {
		reason = "AlreadyExists"
	}
	send(w, status, Object{
		"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason,
		"message": fmt.Sprintf("%s (%d)", message, status),
	})
}

func readBody(r *http.Request) []byte {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	return body
}
