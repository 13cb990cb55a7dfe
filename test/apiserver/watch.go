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
	stream, selected := &stream{s: s, w: w, r: r}, selectorOf(r)
	if query.Get("sendInitialEvents") == "true" {
		var objects []Object
		objects, version = s.store.list(resource)
		for _, o := range objects {
			if selected(o) {
				stream.send("ADDED", o)
			}
		}
		bookmark := Object{"kind": kindOf(resource), "apiVersion": "v1", "metadata": Object{
			"resourceVersion": strconv.Itoa(version), "annotations": Object{"k8s.io/initial-events-end": "true"},
		}}
		stream.send("BOOKMARK", bookmark)
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
			// What comes into the selection is new to the watch, what leaves it is gone.
			switch was, is := c.before != nil && selected(c.before), c.kind != "DELETED" && selected(o); {
			case is && was:
				stream.send("MODIFIED", o)
			case is:
				stream.send("ADDED", o)
			case was:
				stream.send("DELETED", o)
			}
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
	s *Server
	w http.ResponseWriter
	r *http.Request
}

func (t *stream) send(kind string, o Object) {
	data, err := json.Marshal(Object{"type": kind, "object": shown(t.r, o)})
	if err != nil {
		panic(err)
	}
	_, _ = t.w.Write(append(data, '\n')) // a client that is gone ends the request
}

func (t *stream) flush() { t.w.(http.Flusher).Flush() }

// selectorOf tells which objects a request is about. It knows the selectors that
// are of use here: a label that is there, and two fields.
func selectorOf(r *http.Request) func(Object) bool {
	label := r.URL.Query().Get("labelSelector")
	field, want, _ := strings.Cut(r.URL.Query().Get("fieldSelector"), "=")
	return func(o Object) bool {
		labels, _ := Metadata(o)["labels"].(Object)
		if _, labelled := labels[label]; label != "" && !labelled {
			return false
		}
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
