// The part of ONNX Runtime's C interface that is used here. Its Python package has the library and no headers.
//
// OrtGetApiBase is the one name that the library exports; the rest is a table of functions, to which releases only
// append. Each function is written here by its place in that table, counted from 0. A wrong place fails at the first
// call: all functions are called whenever a graph is run, and those of errors by tests/test_cpp.py.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

struct OrtApiBase {
    void* const* (*table)(uint32_t version);  // null where the library is older
    const char* (*release)();
};
extern "C" const OrtApiBase* OrtGetApiBase() noexcept;

namespace ort {

constexpr uint32_t kVersion = 5;  // of the table: the first with all functions below, of release 1.5 (2020)

inline void* function(int place) {
    static void* const* const table = OrtGetApiBase()->table(kVersion);
    if (table == nullptr) throw std::runtime_error("ONNX Runtime is too old");
    return table[place];
}

struct Status;
struct Env;
struct Session;
struct SessionOptions;
struct RunOptions;
struct MemoryInfo;
struct Value;
struct TensorInfo;
struct Allocator;

inline void check(Status* status) {
    if (status == nullptr) return;
    const std::string why = reinterpret_cast<const char* (*)(const Status*)>(function(2))(status);
    reinterpret_cast<void (*)(Status*)>(function(93))(status);
    throw std::runtime_error("ONNX Runtime: " + why);
}

/// A function of the table. Throws its error.
template <int place, typename... Arguments>
void call(Arguments... arguments) {
    check(reinterpret_cast<Status* (*)(Arguments...)>(function(place))(arguments...));
}

constexpr auto create_env = call<3, int, const char*, Env**>;
constexpr auto create_session = call<8, const Env*, const void*, size_t, const SessionOptions*, Session**>;
constexpr auto run = call<9, Session*, const RunOptions*, const char* const*, const Value* const*, size_t,
                          const char* const*, size_t, Value**>;
constexpr auto create_session_options = call<10, SessionOptions**>;
constexpr auto set_inter_op_threads = call<25, SessionOptions*, int>;
constexpr auto input_count = call<30, const Session*, size_t*>;
constexpr auto output_count = call<31, const Session*, size_t*>;
constexpr auto input_name = call<36, const Session*, size_t, Allocator*, char**>;
constexpr auto output_name = call<37, const Session*, size_t, Allocator*, char**>;
constexpr auto create_tensor = call<49, const MemoryInfo*, void*, size_t, const int64_t*, size_t, int, Value**>;
constexpr auto tensor_data = call<51, Value*, void**>;
constexpr auto element_type = call<60, const TensorInfo*, int*>;
constexpr auto element_count = call<64, const TensorInfo*, size_t*>;
constexpr auto tensor_info = call<65, const Value*, TensorInfo**>;
constexpr auto create_cpu_memory_info = call<69, int, int, MemoryInfo**>;
constexpr auto allocator_free = call<76, Allocator*, void*>;
constexpr auto default_allocator = call<78, Allocator**>;
constexpr auto add_config = call<130, SessionOptions*, const char*, const char*>;

/// Owns an object of the library, which the function at this place frees.
template <typename Object, int place>
struct Free {
    void operator()(Object* object) const { reinterpret_cast<void (*)(Object*)>(function(place))(object); }
};
template <typename Object, int place>
using Owned = std::unique_ptr<Object, Free<Object, place>>;

using OwnedEnv = Owned<Env, 92>;
using OwnedMemoryInfo = Owned<MemoryInfo, 94>;
using OwnedSession = Owned<Session, 95>;
using OwnedValue = Owned<Value, 96>;
using OwnedTensorInfo = Owned<TensorInfo, 99>;
using OwnedSessionOptions = Owned<SessionOptions, 100>;

/// What a function makes that takes the address of a pointer as its last argument.
template <typename Result, typename Function, typename... Arguments>
Result made(Function function, Arguments... arguments) {
    typename Result::pointer found = nullptr;
    function(arguments..., &found);
    return Result(found);
}

/// An array of numbers, row by row. `dtype` has its name in signature.json.
struct Tensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::vector<double> numbers;
};

/// A kind of numbers: its code in ONNX, and the numbers as bytes and back.
struct Dtype {
    int code;
    std::string (*bytes)(const std::vector<double>&);
    std::vector<double> (*numbers)(const void*, size_t);
};

template <typename T>
Dtype dtype(int code) {
    return {code,
            [](const std::vector<double>& numbers) {
                std::string bytes(numbers.size() * sizeof(T), '\0');
                T* data = reinterpret_cast<T*>(bytes.data());
                for (double each : numbers) *data++ = static_cast<T>(each);
                return bytes;
            },
            [](const void* data, size_t count) {
                const T* begin = static_cast<const T*>(data);
                return std::vector<double>(begin, begin + count);
            }};
}

inline const std::map<std::string, Dtype>& dtypes() {
    static const std::map<std::string, Dtype> all = {
        {"float32", dtype<float>(1)},   {"uint8", dtype<uint8_t>(2)},    {"int8", dtype<int8_t>(3)},
        {"uint16", dtype<uint16_t>(4)}, {"int16", dtype<int16_t>(5)},    {"int32", dtype<int32_t>(6)},
        {"bool", dtype<bool>(9)},       {"uint32", dtype<uint32_t>(12)},
    };
    return all;
}

/// A graph of ONNX with its weights.
class Graph {
  public:
    /// From the bytes of its file.
    explicit Graph(const std::string& content) {
        const int errors = 3, one_by_one = 1;
        env = made<OwnedEnv>(create_env, errors, "jaxtrain");
        auto options = made<OwnedSessionOptions>(create_session_options);
        set_inter_op_threads(options.get(), one_by_one);
        add_config(options.get(), "session.intra_op.allow_spinning", "0");  // idle threads sleep, as in Python
        // Weights in other files, which nobody has verified, are looked for where there are none.
        add_config(options.get(), "session.model_external_initializers_file_folder_path", "/dev/null");
        session = made<OwnedSession>(create_session, env.get(), static_cast<const void*>(content.data()),
                                     content.size(), options.get());
        const int arena_allocator = 1, cpu = 0;
        memory = made<OwnedMemoryInfo>(create_cpu_memory_info, arena_allocator, cpu);
        inputs = names(input_count, input_name);
        outputs = names(output_count, output_name);
    }

    std::vector<std::string> inputs, outputs;

    /// The numbers of the outputs by name, row by row.
    std::map<std::string, std::vector<double>> run(const std::map<std::string, Tensor>& tensors) const {
        std::vector<std::string> bytes;
        std::vector<OwnedValue> values;
        bytes.reserve(inputs.size());  // they stay where they are
        for (const std::string& name : inputs) {
            const Tensor& tensor = tensors.at(name);
            const Dtype& kind = dtypes().at(tensor.dtype);
            bytes.push_back(kind.bytes(tensor.numbers));
            values.push_back(made<OwnedValue>(create_tensor, memory.get(), static_cast<void*>(bytes.back().data()),
                                              bytes.back().size(), tensor.shape.data(), tensor.shape.size(),
                                              kind.code));
        }
        std::vector<const Value*> given;
        for (const OwnedValue& each : values) given.push_back(each.get());
        std::vector<Value*> found(outputs.size(), nullptr);
        ort::run(session.get(), nullptr, pointers(inputs).data(), given.data(), given.size(), pointers(outputs).data(),
                 outputs.size(), found.data());
        std::map<std::string, std::vector<double>> numbers;
        for (size_t number = 0; number < found.size(); number++)
            numbers[outputs[number]] = numbers_of(OwnedValue(found[number]));
        return numbers;
    }

  private:
    OwnedEnv env;  // outlives the session
    OwnedSession session;
    OwnedMemoryInfo memory;

    static std::vector<const char*> pointers(const std::vector<std::string>& texts) {
        std::vector<const char*> found;
        for (const std::string& each : texts) found.push_back(each.c_str());
        return found;
    }

    template <typename Count, typename Name>
    std::vector<std::string> names(Count count, Name name) const {
        Allocator* allocator = nullptr;
        default_allocator(&allocator);
        size_t size = 0;
        count(session.get(), &size);
        std::vector<std::string> found;
        for (size_t number = 0; number < size; number++) {
            char* text = nullptr;
            name(session.get(), number, allocator, &text);
            found.emplace_back(text);
            allocator_free(allocator, text);
        }
        return found;
    }

    static std::vector<double> numbers_of(const OwnedValue& value) {
        const auto info = made<OwnedTensorInfo>(tensor_info, static_cast<const Value*>(value.get()));
        int code = 0;
        size_t count = 0;
        void* data = nullptr;
        element_type(info.get(), &code);
        element_count(info.get(), &count);
        tensor_data(value.get(), &data);
        for (const auto& each : dtypes()) {
            if (each.second.code == code) return each.second.numbers(data, count);
        }
        throw std::runtime_error("an output is of ONNX's type " + std::to_string(code) + ", which is not read here");
    }
};

}  // namespace ort
