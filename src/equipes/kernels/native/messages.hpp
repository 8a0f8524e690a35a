// The multilinear form of message passing, a template for each (l1, l2, l3), and what is needed of its derivatives.
//
//   F(x, Y, w, g) = Σ_edges Σ_paths Σ_channels  w[e,p,u] g[receiver,m3,u] C[m1,m2,m3] x[sender,m1,u] Y[e,m2]
//
//   forward       ∂F/∂g: the sums of messages
//   tangent       its change when x, Y, w change in a direction
//   reverse       ∂F/∂x, ∂F/∂Y and ∂F/∂w (or ∂F/∂r, where w depends on the edge's length)
//   dual_reverse  the change of ∂F/∂x and ∂F/∂w in a direction, as rows for w and dw/dr
//
// The first two sum over edges what goes to one receiver: harmonics and coupling make a matrix A[m1,m3] for each edge, and
// the sums stay in registers. The last two spread what comes from one receiver: its cotangent and the coupling make
// H[m1,m2], built once and shared by all of its edges.
#pragma once

#include <array>

#include "couplings.hpp"
#include "vector.hpp"

namespace equipes {

// Features: element (atom, m, u) is data[atom * stride + m * component + u]; channels lie side by side.
template <class T>
struct Rows {
  T* data = nullptr;
  std::int64_t stride = 0, component = 0;

  T* at(std::int64_t atom) const { return data + atom * stride; }
  Rows from_channel(int u) const { return {data + u, stride, component}; }
};

// How many edges ahead the kernels ask for radial weights.
constexpr int kFetchAhead = 8;

// Edges sorted by receiver, and what they know. Numbers that belong to (m, edge) lie at [m * stride + edge].
template <class T>
struct Neighbours {
  std::int64_t first = 0, last = 0;  // the receivers to do
  const std::int64_t* row = nullptr;  // edges of receiver i: row[i] .. row[i + 1]
  const std::int32_t* place = nullptr;  // the features of receiver i are row place[i]
  const std::int32_t* sender = nullptr;  // the sender's row of features
  const std::int32_t* weights = nullptr;  // the edge's row of radial weights; two may share one; kFetchAhead more entries
  const std::uint8_t* opens = nullptr;  // whether the edge comes first of those that share its row
  std::int64_t stride = 0;
  const T* harmonics = nullptr;
  const T* harmonics_tangent = nullptr;
  const T* length_tangent = nullptr;
};

// Weights of one path and its place in the messages.
template <class T>
struct PathRows {
  const T* w = nullptr;  // nullptr: there is no such path
  std::int64_t stride = 0;  // from one row of weights to the next
  std::int64_t derivative = 0;  // from w to dw/dr
  T* w_cotangent = nullptr;
  Rows<T> messages;  // forward and tangent write them, the reverse kernels read their cotangents
  Rows<T> messages_tangent;  // changes of the cotangents
};

// The number of degrees l3 = |l1 - l2| .. l1 + l2 that l1 and l2 couple to.
constexpr int degrees(int l1, int l2) {
  const int low = l1 < l2 ? l2 - l1 : l1 - l2, high = l1 + l2 < kMaxL ? l1 + l2 : kMaxL;
  return high - low + 1;
}

// All paths from one block of features with one degree of the harmonics.
template <class T>
struct MessageJob {
  Neighbours<T> edges;
  int vectors = 0;  // of channels, at most kTile / lanes
  Rows<T> x, x_tangent, x_cotangent;  // the last one is added to
  std::array<PathRows<T>, kMaxL + 1> paths;  // by l3 - |l1 - l2|
  T* harmonics_cotangent = nullptr;  // added to, [2 l2 + 1][stride]
  T* length_cotangent = nullptr;  // added to, [edges]; nullptr: w_cotangent is wanted instead
};

enum class MessageSweep { kForward, kTangent, kReverse, kDualReverse };

template <class T>
using MessageKernel = void (*)(const MessageJob<T>&);

template <class T>
MessageKernel<T> message_kernel(MessageSweep sweep, int l1, int l2);

// Channels in one job: a multiple of the vector width, of which both inner loops and radial weights are made.
template <class T>
constexpr int kTile = 2 * kLanes<T>;

}  // namespace equipes
