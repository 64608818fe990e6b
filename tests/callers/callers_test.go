package callers

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	_ "google.golang.org/grpc/reflection/grpc_reflection_v1alpha" // its messages
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/dynamicpb"

	agentv1 "github.com/sallyport-pki/sallyport/gen/sallyport/agent/v1"
	deployerv1 "github.com/sallyport-pki/sallyport/gen/sallyport/deployer/v1"
	_ "github.com/sallyport-pki/sallyport/gen/sallyport/inventory/v1" // its messages
	_ "github.com/sallyport-pki/sallyport/gen/sallyport/issuer/v1"    // its messages
	"github.com/sallyport-pki/sallyport/internal/fault"
	"github.com/sallyport-pki/sallyport/internal/identity"
)

// TestCallers makes every call there is as every kind of caller, to `sallyport serve`.
func TestCallers(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	t.Run("calls", func(t *testing.T) {
		t.Run("end of a certificate", func(t *testing.T) { t.Parallel(); endOfCertificate(t, s) })
		t.Run("others", func(t *testing.T) {
			t.Parallel()
			s.tries(t)
			t.Run("agents", func(t *testing.T) { agents(t, s) })
		})
	})
	s.ends(t)
}

// TestCallersOfDaemons makes every call there is as every kind of caller, to each of the four daemons.
func TestCallersOfDaemons(t *testing.T) {
	t.Parallel()
	s := newDaemons(t)
	s.tries(t)
	s.ends(t)
}

// tries makes all callers and lets them make all calls.
func (s *site) tries(t *testing.T) {
	t.Helper()
	s.gather(t)
	if !t.Run("methods", func(t *testing.T) { served(t, s) }) {
		t.FailNow() // a call could not even be made
	}
	t.Run("table", func(t *testing.T) {
		for n, caller := range callers {
			t.Run(caller, func(t *testing.T) {
				t.Parallel()
				for _, server := range s.servers {
					conn := s.dial(t, s.callers[caller], server)
					for method, row := range table {
						if s.has(server, method) {
							s.call(t, conn, server, caller, method, s.letter(server, row, n))
						}
					}
				}
			})
		}
	})
}

// ends wants the records of all that was refused.
func (s *site) ends(t *testing.T) {
	t.Helper()
	t.Run("records", func(t *testing.T) {
		// What each service records last is the sign that the log has it all.
		done := map[string]bool{}
		for method, row := range table {
			service := recorder(method)
			if server := s.server(service); !done[service] && letters(row)[0] == 'N' && s.has(server, method) {
				s.call(t, s.dial(t, nil, server), server, "nobody", method, 'N')
				done[service] = true
			}
		}
		s.checkRecords(t)
	})
}

// has says whether a server serves a method. What is nobody's own is served by each.
func (s *site) has(server, method string) bool {
	return s.server(recorder(method)) == server || strings.HasPrefix(method, "grpc.")
}

// letter is the answer that a server gives to the caller in a column. How an agent stands is known to the deployer alone: to a daemon
// without it, one is like the other.
func (s *site) letter(server, row string, column int) rune {
	if letter := letters(row)[column]; server == s.server("deployer") || !strings.ContainsRune("LGK", letter) {
		return letter
	}
	return letters(row)[slices.Index(callers, "beta")]
}

// TestTable holds the table to its own form.
func TestTable(t *testing.T) {
	roles := append([]identity.Role{identity.RoleOperator}, identity.Services...)
	for _, role := range roles {
		if !slices.Contains(callers, string(role)) {
			t.Errorf("the role %s is no caller", role)
		}
	}
	used := map[rune]bool{}
	for method, row := range table {
		if n := len(letters(row)); n != len(callers) {
			t.Errorf("%s: %d answers for %d callers", method, n, len(callers))
		}
		for _, letter := range letters(row) {
			if _, known := answers[letter]; !known {
				t.Errorf("%s: the answer %c is not explained", method, letter)
			}
			used[letter] = true
		}
		api, _, _ := strings.Cut(method, "/")
		if recorders[api] == "" {
			t.Errorf("%s: nobody records its refusals", api)
		}
	}
	for letter := range answers {
		if !used[letter] {
			t.Errorf("the answer %c is given to nobody", letter)
		}
	}
}

func letters(row string) []rune { return []rune(strings.ReplaceAll(row, " ", "")) }

// gather makes all callers. The streams that some had open end with their standing.
func (s *site) gather(t *testing.T) {
	t.Helper()
	foreign, forged := s.domainOf(t, "other.example"), s.domainOf(t, domain)
	var mu sync.Mutex
	t.Run("identities", func(t *testing.T) {
		take := func(caller, who, dir string, more ...string) {
			t.Run(caller, func(t *testing.T) {
				t.Parallel()
				cert := s.issue(t, who, dir, more...)
				mu.Lock()
				defer mu.Unlock()
				s.callers[caller] = cert
			})
		}
		take("foreign", "operator/admin", foreign)
		take("forged", "operator/admin", forged)
		take("expired", "operator/admin", "", "--ttl", "1s")
		take("broker", "service/nats", "")
		take("operator", "operator/alice", "")
		for _, service := range []string{"inventory", "issuer", "deployer", "audit"} {
			take(service, "service/"+service, "")
		}
	})
	for _, host := range []string{"alpha", "beta", "locked", "removed", "rekeyed"} {
		s.callers[host] = s.enrol(t, host).cert
	}
	s.give(t, s.agentOf(t, "alpha"))
	t.Run("streams", func(t *testing.T) {
		t.Run("of a locked agent", func(t *testing.T) {
			t.Parallel()
			s.loses(t, "locked", 'L', func(*agent) {
				ok(s.deployer.LockAgent(t.Context(), &deployerv1.LockAgentRequest{Host: "locked", Reason: "stolen"}))(t)
			})
		})
		t.Run("of a removed agent", func(t *testing.T) {
			t.Parallel()
			s.loses(t, "removed", 'G', func(*agent) {
				ok(s.deployer.RemoveAgent(t.Context(), &deployerv1.RemoveAgentRequest{Host: "removed", Reason: "sold"}))(t)
			})
		})
		t.Run("with an old key", func(t *testing.T) {
			t.Parallel()
			s.loses(t, "rekeyed", 'K', func(a *agent) {
				key := newKey(t)
				got := ok(a.RenewIdentity(t.Context(), &agentv1.RenewIdentityRequest{Csr: request(t, key, x509.CertificateRequest{})}))(t)
				// The new key takes over at its first use.
				ok(s.agent(t, a.host, key, got.GetGrant()).ReportObservation(t.Context(), &agentv1.ReportObservationRequest{}))(t)
			})
		})
	})
	expires := ok(x509.ParseCertificate(s.callers["expired"].Certificate[0]))(t).NotAfter
	s.await(t, "a certificate to end", func() error {
		if !time.Now().After(expires) {
			return errors.New("not yet")
		}
		return nil
	})
	for _, caller := range callers {
		if _, made := s.callers[caller]; !made {
			t.Fatalf("nobody is %s", caller)
		}
	}
}

// give lets alpha have an assignment, and a challenge that it never answers.
func (s *site) give(t *testing.T, alpha *agent) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream := alpha.subscribe(ctx, t, &agentv1.SubscribeRequest{})
	s.assignment = stream.assigned(t, "desk", func(*agentv1.Assignment) bool { return true }).GetId()
	shop := stream.assigned(t, "shop", func(*agentv1.Assignment) bool { return true })
	ok(alpha.SubmitCSR(t.Context(), &agentv1.SubmitCSRRequest{
		Assignment: shop.GetId(), Generation: shop.GetGeneration(), Attempt: shop.GetAttempt(),
		Csr: request(t, newKey(t), x509.CertificateRequest{DNSNames: []string{"shop.example.com"}}),
	}))(t)
	stream.until(t, "a challenge", func() bool {
		for s.challenge = range stream.challenges {
			return true
		}
		return false
	})
}

// soon is how long a stream may outlive its caller's standing. A key that was replaced has 5 s of grace besides.
const soon = 12 * time.Second

// loses wants an open stream of the agent to end, with the answer, within seconds of what happens.
func (s *site) loses(t *testing.T, host string, letter rune, happens func(*agent)) {
	t.Helper()
	a := s.agentOf(t, host)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ctx, id := named(ctx)
	stream := a.subscribe(ctx, t, &agentv1.SubscribeRequest{})
	ok(stream.Recv())(t)
	happens(a)
	began := time.Now()
	var err error
	for err == nil {
		_, err = stream.Recv()
	}
	what := "the stream of the agent that is " + a.host
	s.judge(t, what, id, "deployer", a.host, "sallyport.agent.v1.AgentService/Subscribe", letter, err)
	if took := time.Since(began); took > soon {
		t.Errorf("%s has gone on for %s", what, took)
	}
}

// call makes one call to a server and judges the answer.
func (s *site) call(t *testing.T, conn *grpc.ClientConn, server, caller, method string, letter rune) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ctx, id := named(ctx)
	// On the wire every call is a stream.
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+method)
	if err == nil {
		err = ask(stream, s.request(method), output(method))
	}
	s.judge(t, method+" as "+caller+" at "+server, id, server, caller, method, letter, err)
}

// ask sends one request and reads one answer.
func ask(stream grpc.ClientStream, req, resp proto.Message) error {
	if err := stream.SendMsg(req); err != nil && !errors.Is(err, io.EOF) { // EOF: what is wrong is told by RecvMsg
		return err
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	if err := stream.RecvMsg(resp); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// judge holds an answer against its letter, and remembers a refusal that must have its record.
func (s *site) judge(t *testing.T, what, id, server, caller, method string, letter rune, err error) {
	t.Helper()
	want := answers[letter]
	if want.code == codes.OK {
		switch status.Code(err) {
		case codes.OK, codes.InvalidArgument, codes.NotFound, codes.Aborted, codes.FailedPrecondition:
		default:
			t.Errorf("%s: want it to be let in, got %v", what, err)
		}
		return
	}
	if f := fault.Of(err); f == nil || status.Code(err) != want.code || f.Reason != want.reason {
		t.Errorf("%s: want %s %s, got %v", what, want.code, want.reason, err)
	}
	by := recorder(method)
	if s.server(by) != server { // every server has it
		by = server
	}
	r := refusal{what: what, kind: by + ".call.denied", subject: "methods/" + method, actor: actor(caller), reason: want.reason}
	switch letter {
	case 'A':
		r.subject, r.reason = "assignments/"+s.assignment, want.record
	case 'H':
		r.subject, r.reason = "challenges/"+s.challenge, want.record
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[id] = r
}

// actor is who a caller is in a record. Whose certificate is no good is nobody.
func actor(caller string) string {
	switch caller {
	case "nobody", "foreign", "forged", "expired", "broker":
		return "anonymous"
	case "operator":
		return "spiffe://" + domain + "/operator/alice"
	case "inventory", "issuer", "deployer", "audit":
		return "spiffe://" + domain + "/service/" + caller
	}
	return "spiffe://" + domain + "/agent/" + caller
}

// request is an empty one, but where one must be about what is alpha's. None of them changes anything.
func (s *site) request(method string) proto.Message {
	switch method {
	case "sallyport.agent.v1.AgentService/SubmitCSR": // too late for any attempt
		return &agentv1.SubmitCSRRequest{Assignment: s.assignment, Generation: 1000, Attempt: 1, Csr: []byte("none")}
	case "sallyport.agent.v1.AgentService/ReportAssignment":
		return &agentv1.ReportAssignmentRequest{ReportId: "table", Assignment: s.assignment, Generation: 1000, Attempt: 1, Outcome: agentv1.Outcome_OUTCOME_SERVED}
	case "sallyport.agent.v1.AgentService/ReportChallenge":
		return &agentv1.ReportChallengeRequest{Challenge: s.challenge, Message: "never"}
	}
	return dynamicpb.NewMessage(described(method).Input())
}

func output(method string) proto.Message { return dynamicpb.NewMessage(described(method).Output()) }

func described(method string) protoreflect.MethodDescriptor {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(method, "/", ".")))
	if err != nil {
		panic(fmt.Sprintf("%s: %v", method, err)) // the table has a method that no proto has
	}
	return d.(protoreflect.MethodDescriptor)
}

// served compares the table with the methods that the servers say they have, and with all the protos.
func served(t *testing.T, s *site) {
	apis := map[string]bool{}
	for _, server := range s.servers {
		there := map[string]bool{}
		conn := s.dial(t, s.callers["operator"], server)
		ok(healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}))(t)
		stream := ok(reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(t.Context()))(t)
		ask := func(req *reflectionpb.ServerReflectionRequest) *reflectionpb.ServerReflectionResponse {
			must(t, stream.Send(req))
			return ok(stream.Recv())(t)
		}
		list := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}})
		for _, service := range list.GetListServicesResponse().GetService() {
			apis[service.GetName()] = true
			file := ask(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: service.GetName()}})
			for _, raw := range file.GetFileDescriptorResponse().GetFileDescriptorProto() {
				for _, method := range methods(t, raw, service.GetName()) {
					there[method] = true
				}
			}
		}
		for method := range there {
			if table[method] == "" || !s.has(server, method) {
				t.Errorf("%s is served at %s and not in the table", method, server)
			}
		}
		for method := range table {
			if s.has(server, method) && !there[method] {
				t.Errorf("%s is in the table and not served at %s", method, server)
			}
		}
		t.Logf("at %s %d methods, %d callers", server, len(there), len(callers))
	}
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			if name := f.Services().Get(i).FullName(); f.Package().Parent() != "" && strings.HasPrefix(string(name), "sallyport.") && !apis[string(name)] {
				t.Errorf("%s is served by nobody", name)
			}
		}
		return true
	})
}

// methods are those of the service in a file that the server has described.
func methods(t *testing.T, raw []byte, service string) []string {
	t.Helper()
	file := &descriptorpb.FileDescriptorProto{}
	must(t, proto.Unmarshal(raw, file))
	d := ok(protodesc.FileOptions{AllowUnresolvable: true}.New(file, nil))(t)
	var all []string
	for i := range d.Services().Len() {
		of := d.Services().Get(i)
		for j := range of.Methods().Len() {
			if string(of.FullName()) == service {
				all = append(all, service+"/"+string(of.Methods().Get(j).Name()))
			}
		}
	}
	return all
}
