/// A reference to something that lives on a loop, carried by other threads which must not touch
/// it.
package struct LoopConfined<Value>: @unchecked Sendable {
    // SAFETY: the value is handed out only to the thread of its loop, which is the discipline that
    // replaces the compiler's check.
    private let value: Value
    /// Number of the loop.
    package let loopIndex: Int

    package init(_ value: Value, on loop: EventLoop) {
        self.value = value
        loopIndex = loop.index
    }

    private init(_ value: Value, loopIndex: Int) {
        self.value = value
        self.loopIndex = loopIndex
    }

    /// The same reference as another type: a conversion that does not touch the value.
    package func map<Other>(_ convert: (Value) -> Other) -> LoopConfined<Other> {
        LoopConfined<Other>(convert(value), loopIndex: loopIndex)
    }

    /// The value, on its loop only.
    package func get(on loop: EventLoop) -> Value {
        precondition(loop.index == loopIndex, "something confined to another loop is touched")
        return value
    }
}
