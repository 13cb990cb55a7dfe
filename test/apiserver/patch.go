package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"
)

// errConflict answers 409.
var errConflict = errors.New("conflict")

// patch changes an object by a patch of a media type.
func (s *store) patch(key, mediaType, manager string, body []byte) (Object, bool, error) {
	return s.edit(key, func(o Object) error {
		switch mediaType {
		case "application/apply-patch+yaml":
			return s.apply(key, manager, o, body)
		case "application/json-patch+json":
			return jsonPatch(o, body)
		case "application/merge-patch+json":
			return mergePatch(o, body)
		case "application/strategic-merge-patch+json":
			return mergeConditions(o, body)
		default:
			return fmt.Errorf("media type %q is not known here", mediaType)
		}
	})
}

// apply is server-side apply as far as annotations go: a manager's annotations
// become those it gives, and others stay; the UID, if given, must be right. mu
// is held.
func (s *store) apply(key, manager string, o Object, body []byte) error {
	var given Object
	if err := yaml.Unmarshal(body, &given); err != nil {
		return err
	}
	meta, wanted := Metadata(o), Metadata(given)
	if err := checkUID(meta, wanted); err != nil {
		return err
	}
	annotations, _ := meta["annotations"].(Object)
	if annotations == nil {
		annotations = Object{}
		meta["annotations"] = annotations
	}
	applied, _ := wanted["annotations"].(Object)
	owner := key + " " + manager
	for _, name := range s.managed[owner] {
		if _, still := applied[name]; !still {
			delete(annotations, name)
		}
	}
	s.managed[owner] = nil
	for name, value := range applied {
		annotations[name] = value
		s.managed[owner] = append(s.managed[owner], name)
	}
	return nil
}

// checkUID refuses what was meant for another object of the same name.
func checkUID(meta, wanted Object) error {
	if uid := textOf(wanted, "uid"); uid != "" && uid != textOf(meta, "uid") {
		return fmt.Errorf("%w: the UID is %s", errConflict, textOf(meta, "uid"))
	}
	return nil
}

// mergePatch is that of RFC 7386: null removes.
func mergePatch(o Object, body []byte) error {
	var given Object
	if err := json.Unmarshal(body, &given); err != nil {
		return err
	}
	if err := checkUID(Metadata(o), Metadata(given)); err != nil {
		return err
	}
	merge(o, given)
	return nil
}

func merge(into, given Object) {
	for key, value := range given {
		inner, isObject := value.(Object)
		there, _ := into[key].(Object)
		switch {
		case value == nil:
			delete(into, key)
		case isObject && there != nil:
			merge(there, inner)
		default:
			into[key] = value
		}
	}
}

// jsonPatch knows test and remove.
func jsonPatch(o Object, body []byte) error {
	var steps []struct {
		Op, Path string
		Value    any
	}
	if err := json.Unmarshal(body, &steps); err != nil {
		return err
	}
	for _, step := range steps {
		parts := strings.Split(strings.TrimPrefix(step.Path, "/"), "/")
		removed, found := walk(o, parts, step.Op == "remove")
		switch {
		case !found:
			return fmt.Errorf("%s: no such path", step.Path)
		case step.Op == "test" && !reflect.DeepEqual(removed, step.Value):
			return fmt.Errorf("%s: test failed", step.Path)
		}
	}
	return nil
}

// walk follows a path through maps and lists, and removes what is there if told.
func walk(at any, parts []string, remove bool) (found any, ok bool) {
	last := len(parts) == 1
	switch at := at.(type) {
	case Object:
		value, ok := at[parts[0]]
		if !ok || last {
			return value, ok
		}
		if list, isList := value.([]any); isList && remove && len(parts) == 2 {
			index, err := strconv.Atoi(parts[1])
			if err != nil || index >= len(list) {
				return nil, false
			}
			at[parts[0]] = slices.Delete(list, index, index+1)
			return nil, true
		}
		return walk(value, parts[1:], remove)
	case []any:
		index, err := strconv.Atoi(parts[0])
		if err != nil || index >= len(at) {
			return nil, false
		}
		if last {
			return at[index], true
		}
		return walk(at[index], parts[1:], remove)
	}
	return nil, false
}

// mergeConditions merges status.conditions by their type.
func mergeConditions(o Object, body []byte) error {
	var patch struct {
		Status struct{ Conditions []Object }
	}
	if err := json.Unmarshal(body, &patch); err != nil {
		return err
	}
	status, _ := o["status"].(Object)
	if status == nil {
		status = Object{}
		o["status"] = status
	}
	conditions, _ := status["conditions"].([]any)
	for _, wanted := range patch.Status.Conditions {
		conditions = slices.DeleteFunc(conditions, func(c any) bool { return textOf(c.(Object), "type") == textOf(wanted, "type") })
		conditions = append(conditions, wanted)
	}
	status["conditions"] = conditions
	return nil
}
