package firewall

import (
	"errors"
	"fmt"
	"runtime"

	ole "github.com/go-ole/go-ole"
	"github.com/go-ole/go-ole/oleutil"
)

// HRESULTs.
const (
	okAlready      = 0x00000001 // S_FALSE: COM was initialized on this thread before
	notFound       = 0x80070002 // ERROR_FILE_NOT_FOUND, if there is no rule of a name
	raisedAnother  = 0x80020009 // DISP_E_EXCEPTION: another is inside
	changedThreads = 0x80010106 // RPC_E_CHANGED_MODE: initialized in another way, which works as well
)

var errForeignRule = errors.New("exists and is not ours")

// policy is Windows' firewall by its COM interface INetFwPolicy2
// (https://learn.microsoft.com/windows/win32/api/netfw/nn-netfw-inetfwpolicy2). It
// belongs to one thread.
type policy struct {
	group  string
	object *ole.IDispatch
	rules  *ole.IDispatch
}

// withPolicy calls fn with the rules of group, on a thread with COM.
func withPolicy(group string, fn func(policy) error) error {
	return withCOM(func() error {
		object, err := newDispatch("HNetCfg.FwPolicy2")
		if err != nil {
			return err
		}
		defer object.Release()
		rules, err := objectOf(oleutil.GetProperty(object, "Rules"))
		if err != nil {
			return fmt.Errorf("open the firewall's rules: %w", err)
		}
		defer rules.Release()
		return fn(policy{group: group, object: object, rules: rules})
	})
}

// withCOM calls fn on a thread with COM.
func withCOM(fn func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	switch err := ole.CoInitializeEx(0, ole.COINIT_MULTITHREADED); {
	case err == nil, isResult(err, okAlready):
		defer ole.CoUninitialize()
	case !isResult(err, changedThreads):
		return fmt.Errorf("initialize COM: %w", err)
	}
	return fn()
}

// newDispatch makes an object of a class, to be released.
func newDispatch(class string) (*ole.IDispatch, error) {
	unknown, err := oleutil.CreateObject(class)
	if err != nil {
		return nil, fmt.Errorf("make a %s: %w", class, err)
	}
	defer unknown.Release()
	object, err := unknown.QueryInterface(ole.IID_IDispatch)
	if err != nil {
		return nil, fmt.Errorf("use a %s: %w", class, err)
	}
	return object, nil
}

// withoutEffect says why rules that are added may let nothing in, empty if they do.
func (p policy) withoutEffect() string {
	state, err := numberOf(p.object, "LocalPolicyModifyState")
	if err != nil {
		return err.Error()
	}
	return withoutEffect(state)
}

// item returns the rule name, to be released, or nil if there is none.
func (p policy) item(name string) (*ole.IDispatch, error) {
	found, err := oleutil.CallMethod(p.rules, "Item", name)
	if isResult(err, notFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for firewall rule %q: %w", name, err)
	}
	rule := found.ToIDispatch()
	if rule == nil {
		return nil, fmt.Errorf("look for firewall rule %q: Windows gives none", name)
	}
	group, err := textOf(rule, "Grouping")
	if err == nil && group != p.group {
		err = errForeignRule
	}
	if err != nil {
		rule.Release()
		return nil, fmt.Errorf("firewall rule %q: %w", name, err)
	}
	return rule, nil
}

func (p policy) find(name string) (hostRule, bool, error) {
	item, err := p.item(name)
	if err != nil || item == nil {
		return hostRule{}, false, err
	}
	defer item.Release()
	rule, err := readRule(dispatchRule{item})
	if err != nil {
		return hostRule{}, false, fmt.Errorf("read firewall rule %q: %w", name, err)
	}
	rule.name = name
	return rule, true, nil
}

func (p policy) add(rule hostRule) error {
	item, err := newDispatch("HNetCfg.FWRule")
	if err != nil {
		return err
	}
	defer item.Release()
	err = put(item, "Name", rule.name)
	if err == nil {
		err = put(item, "Grouping", p.group)
	}
	if err == nil {
		err = writeRule(dispatchRule{item}, rule)
	}
	if err == nil {
		err = cleared(oleutil.CallMethod(p.rules, "Add", item))
	}
	if err != nil {
		return fmt.Errorf("add firewall rule %q: %w", rule.name, err)
	}
	return nil
}

// change writes all that a rule says. Windows takes each property at once, and
// the port is let in all the while.
func (p policy) change(want hostRule) error {
	item, err := p.item(want.name)
	if err != nil || item == nil {
		return err // gone meanwhile: the next Apply adds it
	}
	defer item.Release()
	if err := writeRule(dispatchRule{item}, want); err != nil {
		return fmt.Errorf("change firewall rule %q: %w", want.name, err)
	}
	return nil
}

func (p policy) remove(name string) error {
	if err := cleared(oleutil.CallMethod(p.rules, "Remove", name)); err != nil {
		return fmt.Errorf("remove firewall rule %q: %w", name, err)
	}
	return nil
}

// dispatchRule is a rule by its COM interface INetFwRule.
type dispatchRule struct{ *ole.IDispatch }

func (r dispatchRule) text(name string) (string, error) { return textOf(r.IDispatch, name) }

func (r dispatchRule) number(name string) (int64, error) { return numberOf(r.IDispatch, name) }

func (r dispatchRule) put(name string, value any) error { return put(r.IDispatch, name, value) }

func put(item *ole.IDispatch, name string, value any) error {
	if err := cleared(oleutil.PutProperty(item, name, value)); err != nil {
		return fmt.Errorf("set %s to %v: %w", name, value, err)
	}
	return nil
}

// cleared frees what a call returned.
func cleared(result *ole.VARIANT, err error) error {
	if err != nil {
		return err
	}
	return result.Clear()
}

// textOf reads a property that is a string.
func textOf(item *ole.IDispatch, name string) (string, error) {
	value, err := oleutil.GetProperty(item, name)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", name, err)
	}
	return value.ToString(), value.Clear()
}

// numberOf reads a property that is a number, or a bool as 0 or 1.
func numberOf(item *ole.IDispatch, name string) (int64, error) {
	value, err := oleutil.GetProperty(item, name)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", name, err)
	}
	switch number := value.Value().(type) {
	case int32:
		return int64(number), value.Clear()
	case bool:
		if number {
			return 1, value.Clear()
		}
		return 0, value.Clear()
	}
	return 0, errors.Join(fmt.Errorf("read %s: Windows gives a value of type %v", name, value.VT), value.Clear())
}

// isResult tells whether err is an HRESULT, or has it inside as objects with
// type information raise theirs.
func isResult(err error, result uint32) bool {
	var failed *ole.OleError
	if !errors.As(err, &failed) {
		return false
	}
	if uint32(failed.Code()) == result {
		return true
	}
	var raised ole.EXCEPINFO
	return uint32(failed.Code()) == raisedAnother && errors.As(failed.SubError(), &raised) && raised.SCODE() == result
}
