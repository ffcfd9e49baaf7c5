// llama.cpp as a player: loads a GGUF once and does what llama-bench does, a turn at a time.
//
//   llama_turns MODEL CONTEXT
//   prefill TOKENS THREADS          a prompt, from an empty cache
//   decode TOKENS THREADS DEPTH     so many single tokens after a prompt of DEPTH
//
// As in llama-bench: a pool of threads of its own, tokens drawn at random, one batch a prompt,
// no sampling. Answers are lines of JSON on stdout; the logs of the library go to stderr.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-cpu.h"
#include "llama.h"

namespace {

using Clock = std::chrono::steady_clock;

double since(Clock::time_point begun) {
  return std::chrono::duration<double>(Clock::now() - begun).count();
}

[[noreturn]] void fail(const char* what) {
  std::fprintf(stderr, "llama_turns: %s\n", what);
  std::exit(1);
}

struct Player {
  llama_model* model = nullptr;
  llama_context* context = nullptr;
  std::map<int, ggml_threadpool_t> pools;

  void use(int threads) {
    ggml_threadpool_t& pool = pools[threads];
    if (pool == nullptr) {
      ggml_threadpool_params wanted = ggml_threadpool_params_default(threads);
      pool = ggml_threadpool_new(&wanted);
      if (pool == nullptr) fail("no thread pool");
    }
    llama_attach_threadpool(context, pool, nullptr);
    llama_set_n_threads(context, threads, threads);
  }

  void rest() {
    llama_detach_threadpool(context);
    for (auto& [threads, pool] : pools) ggml_threadpool_pause(pool);
  }

  llama_token draw() const {
    return std::rand() % llama_vocab_n_tokens(llama_model_get_vocab(model));
  }

  void feed(int count) {
    std::vector<llama_token> tokens(count);
    for (llama_token& token : tokens) token = draw();
    if (llama_decode(context, llama_batch_get_one(tokens.data(), count)) != 0) fail("no decode");
    llama_synchronize(context);
  }

  double prefill(int tokens, int threads) {
    use(threads);
    llama_memory_clear(llama_get_memory(context), false);
    const auto begun = Clock::now();
    feed(tokens);
    const double took = since(begun);
    rest();
    return took;
  }

  double decode(int tokens, int threads, int depth) {
    use(threads);
    llama_memory_clear(llama_get_memory(context), false);
    feed(depth);
    const auto begun = Clock::now();
    for (int at = 0; at < tokens; ++at) feed(1);
    const double took = since(begun);
    rest();
    return took;
  }
};

long resident_kib() {
  long pages = 0, resident = 0;
  if (std::FILE* file = std::fopen("/proc/self/statm", "r")) {
    if (std::fscanf(file, "%ld %ld", &pages, &resident) != 2) resident = 0;
    std::fclose(file);
  }
  return resident * 4;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) fail("llama_turns MODEL CONTEXT");
  llama_backend_init();
  Player player;
  const auto begun = Clock::now();
  player.model = llama_model_load_from_file(argv[1], llama_model_default_params());
  if (player.model == nullptr) fail("the model does not load");
  llama_context_params wanted = llama_context_default_params();
  wanted.n_ctx = std::atoi(argv[2]);
  wanted.n_batch = 2048;
  wanted.n_ubatch = 512;
  player.context = llama_init_from_model(player.model, wanted);
  if (player.context == nullptr) fail("no context");
  std::printf("{\"load_s\": %.3f, \"system\": \"%s\"}\n", since(begun), llama_print_system_info());
  std::fflush(stdout);
  std::string line, verb;
  while (std::getline(std::cin, line)) {
    std::istringstream words(line);
    int tokens = 0, threads = 0, depth = 0;
    words >> verb >> tokens >> threads >> depth;
    double took = 0;
    if (verb == "prefill") {
      took = player.prefill(tokens, threads);
    } else if (verb == "decode") {
      took = player.decode(tokens, threads, depth);
    } else if (verb != "memory") {
      fail("unknown order");
    }
    std::printf("{\"seconds\": %.9f, \"tokens\": %d, \"resident_bytes\": %ld}\n", took, tokens,
                resident_kib() * 1024);
    std::fflush(stdout);
  }
}
